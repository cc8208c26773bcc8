"""The mathematics around the network: noise, schedule, guidance, the Euler step. Pure functions, no network inside."""
