"""entropy_target: at forks, the temperature at which the entropy changes by a given number of nats."""
