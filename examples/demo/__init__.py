"""`make demo`: the main job of Lattica, shown in a terminal and checked as it goes."""
