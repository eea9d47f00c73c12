"""What a step costs: one question in every detail, many at once, two accountings compared."""
