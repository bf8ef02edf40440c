"""Records as one page that opens offline."""
