"""Everything together, as Hydra composes it."""

from __future__ import annotations

from dataclasses import field

from pydantic.dataclasses import dataclass

from verl_ext.config.cluster import ClusterConfig, LaunchConfig
from verl_ext.config.data import CurateConfig, DataConfig, PrepareConfig
from verl_ext.config.evaluation import EvaluateConfig, ExplainConfig, GuardConfig, TabulateConfig
from verl_ext.config.experiment import DoctorConfig, ExperimentConfig, PlanConfig, RehearseConfig
from verl_ext.config.fields import STRICT
from verl_ext.config.online import OnlineConfig
from verl_ext.config.policy import ModelConfig
from verl_ext.config.sampling import RolloutConfig, SamplerConfig, VerifyConfig
from verl_ext.config.speed import BenchmarkConfig, FlowConfig, VerifierBenchmarkConfig
from verl_ext.config.training import MethodConfig, TrainConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """Everything a stage may read."""

    run_dir: str = "runs/unnamed"
    overwrite: bool = False
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    verify: VerifyConfig = field(default_factory=VerifyConfig)
    curate: CurateConfig = field(default_factory=CurateConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    tabulate: TabulateConfig = field(default_factory=TabulateConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    benchmark_verifier: VerifierBenchmarkConfig = field(default_factory=VerifierBenchmarkConfig)
    explain: ExplainConfig = field(default_factory=ExplainConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)
    rehearse: RehearseConfig = field(default_factory=RehearseConfig)
    simulate: FlowConfig = field(default_factory=FlowConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
