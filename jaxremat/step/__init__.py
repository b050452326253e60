"""Whole steps: parameters, optimizer, averages, gradients and all, planned as one program."""

from jaxremat.step.batch import LargestBatch as LargestBatch
from jaxremat.step.batch import largest_batch as largest_batch
from jaxremat.step.jit import jit as jit
from jaxremat.step.plan import StepPlan as StepPlan
from jaxremat.step.planned_step import PlannedStep as PlannedStep
