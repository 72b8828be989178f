"""What watches a run: its folder and record, its progress, its pictures."""
