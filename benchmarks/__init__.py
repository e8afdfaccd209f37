"""What is called fast is measured here, with peers beside us in the same run."""
