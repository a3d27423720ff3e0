"""What adapts an encoder to text of one's own: hard negatives from a corpus."""
