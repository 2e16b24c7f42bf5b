"""A policy of another distribution, as its author would write it: T' = warm_temperature + gain * H at forks."""
