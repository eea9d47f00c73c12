"""What is kept for backward, by whose rule; the working memory of kernels."""
