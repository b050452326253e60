"""Plans and curves as text, SVG and HTML; it displays what other rooms have computed, and computes nothing."""
