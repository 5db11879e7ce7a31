"""What rounding can do to a right port, certified and likely."""
