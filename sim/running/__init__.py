"""One prediction carried out: a scenario, its replications, and whole sweeps of them."""
