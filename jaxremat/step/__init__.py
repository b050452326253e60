"""Whole steps: parameters, optimizer, averages, gradients and all, planned as one program."""

from jaxremat.step.jit import PlannedStep as PlannedStep
from jaxremat.step.jit import jit as jit
from jaxremat.step.plan import StepPlan as StepPlan
