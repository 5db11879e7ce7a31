"""Integer networks judged bit for bit: no bound is needed where arithmetic is exact."""
