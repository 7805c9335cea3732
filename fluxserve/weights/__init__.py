"""Reading model files of every supported layout under one set of names. Knows nothing of devices or requests."""
