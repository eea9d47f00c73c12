"""What is kept for backward, by whose books; the working memory of kernels."""
