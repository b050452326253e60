"""The default search: minimum cuts at a price per byte, laid out in segments and groups, judged by the replay."""
