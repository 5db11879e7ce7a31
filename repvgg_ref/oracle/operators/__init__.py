"""One operator of anybody's library, forward or backward, held against its definition."""
