"""What several families are built of, in plain torch."""
