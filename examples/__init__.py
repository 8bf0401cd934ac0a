"""Programs that show Lattica at work, and the small language model they use."""
