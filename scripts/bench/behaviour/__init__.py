"""The parts of `compare_behaviour.py`: it records what the public interface of a checkout does."""
