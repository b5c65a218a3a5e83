"""A live page in the browser: whether all is well, and the market beside it. It reads Redis only."""
