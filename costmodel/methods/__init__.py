"""What trains: a way of training -> the graph that it trains and what is done with it."""
