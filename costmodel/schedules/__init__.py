"""The best way of carrying a step out, for a budget of memory or of FLOPs."""
