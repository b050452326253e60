"""What a program costs on a device: seconds per equation, and which of its values a compiler keeps in memory."""
