from dataclasses import dataclass
@dataclass(frozen=True)
class Decision:
    outcome: object
    guarantee: str
    summary: str
    bias: float
    low: float
    high: float
    parameters: tuple
    draws: int
def decide_sampled(*a, **k): raise NotImplementedError
