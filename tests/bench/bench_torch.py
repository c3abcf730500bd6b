"""One training step of GPT-2 124M in PyTorch, for comparison with pexec (see bench_pexec.sh).

usage: bench_torch.py [STEPS] [BATCH] [SEQ] [THREADS] [MICROBATCHES]
Prints the seconds of each step and, last, tokens/s of the best. fp32, dropout 0, AdamW, the
gradient's norm clipped to 1. Needs python3-torch; best tuning: OPENBLAS_CORETYPE of the CPU's
vector width, an OpenMP build of OpenBLAS, memory kept by malloc (MALLOC_TRIM_THRESHOLD_ and
MALLOC_MMAP_THRESHOLD_ large).
"""
import math
import sys
import time

import torch
from torch import nn
from torch.nn import functional as f

HIDDEN, HEADS, LAYERS, VOCAB, POSITIONS = 768, 12, 12, 50257, 1024


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x, mask):
        b, t, _ = x.shape
        q, k, v = (
            y.view(b, t, HEADS, HIDDEN // HEADS).transpose(1, 2)
            for y in self.qkv(self.norm1(x)).split(HIDDEN, 2)
        )
        scores = q @ k.transpose(2, 3) * (HIDDEN // HEADS) ** -0.5 + mask
        o = (scores.softmax(3) @ v).transpose(1, 2).reshape(b, t, HIDDEN)
        x = x + self.out(o)
        u = self.up(self.norm2(x))
        g = GELU(u) if GELU else 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        return x + self.down(g)


def tanh_gelu():
    """PyTorch's own fused kernel, where this version has it."""
    try:
        f.gelu(torch.zeros(1), approximate="tanh")
        return lambda u: f.gelu(u, approximate="tanh")
    except TypeError:
        return None


GELU = tanh_gelu()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, HIDDEN), nn.Embedding(POSITIONS, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, ids, targets):
        t = ids.shape[1]
        mask = torch.full((t, t), -math.inf).triu(1)
        x = self.tokens(ids) + self.positions(torch.arange(t))
        for layer in self.layers:
            x = layer(x, mask)
        logits = self.norm(x) @ self.tokens.weight.t()
        return f.cross_entropy(logits.view(-1, VOCAB), targets.view(-1))


def main():
    given = [int(x) for x in sys.argv[1:]]
    steps, batch, seq, threads, microbatches = given + [8, 1, 256, 2, 1][len(given) :]
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    best = math.inf
    for _ in range(steps):
        ids = torch.randint(VOCAB, (microbatches, batch, seq))
        targets = torch.randint(VOCAB, (microbatches, batch, seq))
        begin = time.perf_counter()
        for m in range(microbatches):
            (model(ids[m], targets[m]) / microbatches).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        seconds = time.perf_counter() - begin
        best = min(best, seconds)
        print(f"step {seconds:.3f} s", flush=True)
    print(f"torch {torch.__version__} best {best:.3f} s {microbatches * batch * seq / best:.0f} tokens/s")


main()
