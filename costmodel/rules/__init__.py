"""What each kind of layer needs for each gradient, and its FLOPs."""
