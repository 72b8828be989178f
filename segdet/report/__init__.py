"""What came out: result records as tables."""
