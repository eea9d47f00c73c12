"""The network as a value: layers, tensors, blocks, and the files that keep them."""
