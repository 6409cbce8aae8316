"""The class wall: what learners agreed to share, on one page, live."""
