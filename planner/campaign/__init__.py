"""Real training runs -> evidence."""
