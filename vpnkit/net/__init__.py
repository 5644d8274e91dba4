"""WHO TALKS TO WHOM: the address plan, the policy, one guest's burst loop and its tables."""
