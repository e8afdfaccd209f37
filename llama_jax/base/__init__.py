"""What knows nothing of a Llama."""
