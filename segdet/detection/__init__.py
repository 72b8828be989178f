"""Detection: all objects of an image, one file a family."""
