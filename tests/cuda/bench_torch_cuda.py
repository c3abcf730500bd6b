"""Training throughput of PyTorch (compiled, fused attention, fused AdamW, bf16) beside pexec's.

usage: bench_torch_cuda.py gpt2|llama
The models and batches are those of scripts/gpu-check: GPT-2 1.5B at 1024, eight Llama-3-8B-like
layers at 4096; four microbatches a step, gradients accumulated in fp32 master weights' precision.
"""
import sys
import time

import torch
from torch import nn
from torch.nn import functional as f

LLAMA = sys.argv[1] == "llama"
if LLAMA:
    LAYERS, HIDDEN, HEADS, KV, FFN, VOCAB, SEQ, BATCH = 8, 4096, 32, 8, 14336, 32000, 4096, 2
else:
    LAYERS, HIDDEN, HEADS, KV, FFN, VOCAB, SEQ, BATCH = 48, 1600, 25, 25, 6400, 50257, 1024, 8
HEAD, ACCUMULATE, STEPS = HIDDEN // HEADS, 4, 4
FLOP = 1.2846e10 if LLAMA else 9.818e9


def norm():
    return nn.RMSNorm(HIDDEN) if LLAMA else nn.LayerNorm(HIDDEN)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        bias = not LLAMA
        self.norm1, self.norm2 = norm(), norm()
        self.qkv = nn.Linear(HIDDEN, (HEADS + 2 * KV) * HEAD, bias=bias)
        self.out = nn.Linear(HIDDEN, HIDDEN, bias=bias)
        self.up = nn.Linear(HIDDEN, FFN, bias=bias)
        self.gate = nn.Linear(HIDDEN, FFN, bias=False) if LLAMA else None
        self.down = nn.Linear(FFN, HIDDEN, bias=bias)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, -1, HEAD).transpose(1, 2).split((HEADS, KV, KV), 1)
        if LLAMA:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
            k, v = (y.repeat_interleave(HEADS // KV, 1) for y in (k, v))
        o = f.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(o.transpose(1, 2).reshape(b, t, HIDDEN))
        y = self.norm2(x)
        up = f.silu(self.gate(y)) * self.up(y) if LLAMA else f.gelu(self.up(y), approximate="tanh")
        return x + self.down(up)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, HIDDEN)
        self.positions = None if LLAMA else nn.Embedding(SEQ, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = norm()
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)
        if not LLAMA:
            self.head.weight = self.tokens.weight
        angle = torch.outer(torch.arange(SEQ), 500000.0 ** (-torch.arange(0, HEAD, 2) / HEAD))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids, targets):
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions.weight
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return f.cross_entropy(self.head(self.norm(x)).view(-1, VOCAB), targets.view(-1))


def main():
    torch.manual_seed(1)
    with torch.device("cuda"):
        model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    step_model = torch.compile(model)
    best = None
    for _ in range(STEPS):
        ids = torch.randint(VOCAB, (ACCUMULATE, BATCH, SEQ), device="cuda")
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for m in range(ACCUMULATE):
            with torch.autocast("cuda", torch.bfloat16):
                loss = step_model(ids[m], ids[m].roll(-1, 1)) / ACCUMULATE
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        best = seconds if best is None else min(best, seconds)
    rate = ACCUMULATE * BATCH * SEQ / best
    print(f"        PyTorch {torch.__version__} {sys.argv[1]}: {rate:.0f} tokens/s, "
          f"{rate * FLOP / 9.89e12:.1f} % of 989 TFLOP/s, "
          f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


main()
