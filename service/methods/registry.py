"""The methods this service knows: a plain tuple, one entry a method."""

from __future__ import annotations

from service.methods.agi import AGI
from service.methods.blur_ig import BLUR_IG
from service.methods.boundary_ig import BOUNDARY_IG
from service.methods.boundary_saliency import BOUNDARY_SALIENCY
from service.methods.decision_ig import DECISION_IG
from service.methods.deconvnet import DECONVNET
from service.methods.directional_ig import DIRECTIONAL_IG
from service.methods.expected_gradients import EXPECTED_GRADIENTS
from service.methods.fullgrad import FULLGRAD
from service.methods.grad_cam import GRAD_CAM
from service.methods.grad_cam_pp import GRAD_CAM_PP
from service.methods.guided_backprop import GUIDED_BACKPROP
from service.methods.guided_ig import GUIDED_IG
from service.methods.idgi import IDGI
from service.methods.input_x_gradient import INPUT_X_GRADIENT
from service.methods.integrated_gradients import INTEGRATED_GRADIENTS
from service.methods.integrated_hessians import INTEGRATED_HESSIANS
from service.methods.neflag import NEFLAG
from service.methods.rectgrad import RECTGRAD
from service.methods.saliency import SALIENCY
from service.methods.sequential_ig import SEQUENTIAL_IG
from service.methods.smooth_grad_cam_pp import SMOOTH_GRAD_CAM_PP
from service.methods.spec import MethodSpec
from service.methods.split_ig import SPLIT_IG
from service.methods.xrai import XRAI

METHODS: tuple[MethodSpec, ...] = (
    INTEGRATED_GRADIENTS,
    EXPECTED_GRADIENTS,
    INTEGRATED_HESSIANS,
    DIRECTIONAL_IG,
    GUIDED_IG,
    SPLIT_IG,
    DECISION_IG,
    IDGI,
    BLUR_IG,
    XRAI,
    SEQUENTIAL_IG,
    AGI,
    BOUNDARY_IG,
    BOUNDARY_SALIENCY,
    NEFLAG,
    SALIENCY,
    INPUT_X_GRADIENT,
    DECONVNET,
    GUIDED_BACKPROP,
    RECTGRAD,
    GRAD_CAM,
    GRAD_CAM_PP,
    SMOOTH_GRAD_CAM_PP,
    FULLGRAD,
)

BY_NAME = {entry.name: entry for entry in METHODS}
