"""All that prints or draws."""
