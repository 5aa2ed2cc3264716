"""ONNX Runtime's RNN operator: forward only. Weights are initializers, which the session packs when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ..arms import Arm, Problem

OPSET = 14


def make(name: str, p: Problem, threads: int) -> Arm:
    B, T, I, H = p.shape
    weights = {"W": p.w_ih[None], "R": p.w_hh[None], "B": np.concatenate([p.b_ih, p.b_hh])[None]}
    node = helper.make_node(
        "RNN", ["x", "W", "R", "B", "", "h_0"], ["output", "h_n"], hidden_size=H, activations=["Tanh"]
    )
    inputs = {"x": (T, B, I), "h_0": (1, B, H)}
    outputs = {"output": (T, 1, B, H), "h_n": (1, B, H)}

    def infos(sizes: Mapping[str, tuple[int, ...]]) -> Any:
        return [helper.make_tensor_value_info(key, TensorProto.FLOAT, size) for key, size in sizes.items()]

    initializers = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    graph = helper.make_graph([node], "rnn", infos(inputs), infos(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    fed = {"x": p.x, "h_0": p.h_0[None]}

    def forward() -> Any:
        return session.run(None, fed)

    return Arm(name, forward, None, spins=True, unpack=lambda results: [results[0][:, 0], results[1][0]])
