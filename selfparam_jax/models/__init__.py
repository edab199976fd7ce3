"""The decoder, its attention, adapters and parameters, and the model families; arrays in, arrays out."""
