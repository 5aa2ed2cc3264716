"""fastrnn.torch under DistributedDataParallel and FSDP2: processes over gloo on the CPU, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CODE = """
import os, sys, torch, torch.distributed as dist, torch.multiprocessing as mp, fastrnn

T, B, WORLD = 9, 8, 2

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = fastrnn.torch.RNN(5, 7, 2, bidirectional=True)
        self.cell = fastrnn.torch.RNNCell(14, 9)
        self.head = torch.nn.Linear(9, 3)
    def forward(self, x):
        output, h_n = self.rnn(x)
        return self.head(self.cell(output[-1]))

def loss_of(model, x, y):
    return torch.nn.functional.cross_entropy(model(x), y)

def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(T, B, 5, generator=generator, dtype=torch.float64), torch.randint(3, (B,), generator=generator)

def step(model, x, y, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        optimizer.step()

def wrap_ddp(model):
    return torch.nn.parallel.DistributedDataParallel(model)

def wrap_fsdp(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(model.rnn, mesh=mesh)
    return fully_shard(model, mesh=mesh)

def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

def work(rank, how, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + folder + "/rendezvous", rank=rank, world_size=WORLD)
    x, y = data()
    model = globals()["wrap_" + how](Model().double())
    rows = slice(rank * B // WORLD, (rank + 1) * B // WORLD)
    step(model, x[:, rows], y[rows])
    found = {name.removeprefix("module."): (whole(p.detach()), whole(p.grad)) for name, p in model.named_parameters()}
    rnn = getattr(model, "module", model).rnn
    assert isinstance(rnn, fastrnn.torch.RNN)
    assert type(rnn(x)[0].grad_fn).__name__ == "RnnLayerBackward"
    torch.save(found, folder + f"/found{rank}.pt")
    dist.destroy_process_group()
    # Without the interpreter's end, where a thread of gloo's that still holds a tensor aborts: pytorch/pytorch#190489
    os._exit(0)

if __name__ == "__main__":
    how, folder = sys.argv[1:]
    mp.spawn(work, args=(how, folder), nprocs=WORLD)
    alone = Model().double()
    step(alone, *data())
    worst = 0.0
    for rank in range(WORLD):
        found = torch.load(folder + f"/found{rank}.pt")
        assert list(found) == [name for name, _ in alone.named_parameters()]
        for name, p in alone.named_parameters():
            for got, want in zip(found[name], (p.detach(), p.grad)):
                worst = max(worst, float((got - want).abs().max() / want.abs().max()))
    print(worst <= 1e-12, worst)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_equal_one_on_the_joined_batch(torch: Any, tmp_path: Path, how: str) -> None:
    """Weights after three steps and the last gradients, float64, <= 1e-12; layer and cell are fastrnn's."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this build of PyTorch has no gloo")
    file = tmp_path / "two_processes.py"
    file.write_text(CODE)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FASTRNN_")}
    result = subprocess.run(
        [sys.executable, file, how, tmp_path],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("True"), result.stdout


TRAIN = """
import torch
torch.manual_seed(0)
torch.set_num_threads(1)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.RNN(5, 7, batch_first=True)
        self.head = torch.nn.Linear(7, 3)
    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

model = Model()

def batches_of(rank):
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        yield torch.randn(4, 9, 5, generator=generator), torch.randint(3, (4,), generator=generator)
"""
STEP = """
    torch.nn.functional.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
            p.grad = None
kind = type(model.module.rnn)
import os
with open(f"found{os.environ['RANK']}", "w") as file:
    print(kind.__module__, kind.__name__, [p.sum().item() for p in model.parameters()], file=file)
"""


@pytest.mark.slow
def test_the_script_of_the_readme_runs_under_torchrun(torch: Any, tmp_path: Path) -> None:
    """As it stands there, with a model, data and a loop: fastrnn computes, and both processes end with one model."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this build of PyTorch has no gloo")
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    script = readme.split("# train.py: torchrun --nproc-per-node=2 train.py\n")[1].split("```")[0]
    (tmp_path / "train.py").write_text(TRAIN + script.replace("    ...\n", STEP))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FASTRNN_")}
    for _ in range(3):
        result = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py"],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if "terminate called without an active exception" not in result.stderr:
            break  # else a thread of gloo's outlived the interpreter, without fastrnn too: pytorch/pytorch#190489
    assert result.returncode == 0, result.stderr
    found = [(tmp_path / f"found{rank}").read_text() for rank in range(2)]
    assert found[0] == found[1]
    assert found[0].startswith("fastrnn.torch.layer RNN [")
