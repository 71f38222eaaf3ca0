"""Configuration: one frozen, validated dataclass per stage, composed by Hydra from `configs/`.

The dataclasses in these modules are the only place where a key, its type and its default are written. YAML files and
`key=value` arguments may set nothing else: a mistyped key is refused with the nearest valid one. Nothing here imports
torch, ray, verl or vllm.
"""

from __future__ import annotations

from verl_ext.config.cluster import ClusterConfig, KubeRayConfig, LaunchConfig, SlurmConfig
from verl_ext.config.data import CurateConfig, DataConfig, PrepareConfig, SourceConfig
from verl_ext.config.evaluation import EvaluateConfig, ExplainConfig, GuardConfig, TabulateConfig
from verl_ext.config.experiment import DoctorConfig, ExperimentConfig, PlanConfig, RehearseConfig, RowConfig
from verl_ext.config.online import OnlineConfig
from verl_ext.config.policy import ModelConfig
from verl_ext.config.root import Config
from verl_ext.config.sampling import RolloutConfig, SamplerConfig, VerifyConfig
from verl_ext.config.speed import BenchmarkConfig, FlowConfig, VerifierBenchmarkConfig
from verl_ext.config.training import MethodConfig, TrainConfig

__all__ = [
    "BenchmarkConfig",
    "ClusterConfig",
    "Config",
    "CurateConfig",
    "DataConfig",
    "DoctorConfig",
    "EvaluateConfig",
    "ExperimentConfig",
    "ExplainConfig",
    "FlowConfig",
    "GuardConfig",
    "KubeRayConfig",
    "LaunchConfig",
    "MethodConfig",
    "ModelConfig",
    "OnlineConfig",
    "PlanConfig",
    "PrepareConfig",
    "RehearseConfig",
    "RolloutConfig",
    "RowConfig",
    "SamplerConfig",
    "SlurmConfig",
    "SourceConfig",
    "TabulateConfig",
    "TrainConfig",
    "VerifierBenchmarkConfig",
    "VerifyConfig",
]
