"""Networks that stand beside the denoisers of several families: text encoders and autoencoders."""
