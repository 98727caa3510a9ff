"""Compare decoders over one backbone on objects of several sizes."""
