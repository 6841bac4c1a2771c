// Compares attention's kernels with a plain reference in double precision, on the emulated device. Prints
// the largest error of each kind and ends with 1 if one is too large, or if a check that must fail passes.
// attention_check.sh builds and runs it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "prelude.cuh"

namespace {

// --- What is to be computed ---

struct Problem {
    int heads, dim;
    std::vector<unsigned> lengths;
    bool first_only;
    double probability;
    /// Of q's and k's elements: the larger, the fewer keys matter to a query.
    double spread = 1;
    /// Added to q's elements and taken from k's: makes all scores negative.
    double bias = 0;

    unsigned sequences() const { return static_cast<unsigned>(lengths.size()); }
    unsigned longest() const { return *std::max_element(lengths.begin(), lengths.end()); }
    unsigned tokens() const { return starts().back(); }
    unsigned rows() const { return first_only ? sequences() : tokens(); }
    size_t width() const { return static_cast<size_t>(heads) * dim; }
    std::vector<unsigned> starts() const {
        std::vector<unsigned> all{0};
        for (const unsigned n : lengths) {
            all.push_back(all.back() + n);
        }
        return all;
    }
    Dropout dropout() const {
        const auto threshold = static_cast<unsigned>(std::lround(probability * 65536));
        return {threshold, 65536.0f / static_cast<float>(65536 - threshold), 0x12345678, 0x9ABCDEF0, 77};
    }
};

/// Philox4x32-10 and the use that dropout.rs makes of it, once more: the kernels' own is under test.
bool keeps(const Dropout& dropout, uint64_t row_key, unsigned column) {
    uint64_t c[4] = {column / 128 * 16 + column % 16, dropout.site, row_key & 0xFFFFFFFF, row_key >> 32};
    uint64_t k[2] = {dropout.key0, dropout.key1};
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = c[0] * 0xD2511F53, b = c[2] * 0xCD9E8D57;
        const uint64_t next[4] = {(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1],
                                  a & 0xFFFFFFFF};
        std::copy(next, next + 4, c);
        k[0] = (k[0] + 0x9E3779B9) & 0xFFFFFFFF;
        k[1] = (k[1] + 0xBB67AE85) & 0xFFFFFFFF;
    }
    const unsigned draw = column % 128 / 16;
    return (c[draw / 2] >> (16 * (draw % 2)) & 0xFFFF) >= dropout.threshold;
}

using Matrix = std::vector<double>;

struct Tensors {
    Matrix q, k, v, dctx, ctx, lse, dq, dk, dv;
    std::vector<uint64_t> token_keys;
};

/// What kernels are compared with, and for each row of a head the root of its terms' squares: what rounding
/// the terms by themselves gives is relative to it, however much they cancel out, and yet one term out of
/// hundreds that is amiss stands out.
struct Reference {
    Tensors values, scales;
};

/// An error for the reference, to see that the comparison sees it.
struct Planted {
    /// Keys overlooked at the end of each sequence of 8 or more.
    unsigned missing = 0;
    /// Added to dropout's site.
    unsigned site = 0;
};

/// One query with one head.
struct Query {
    const Problem& problem;
    /// Of its row in q and of its first key in k, this head's columns.
    size_t at, first_key;
    /// Of its row and head in lse.
    size_t number;
    std::vector<double> scores, factors;
};

void for_each_query(const Problem& problem, const Tensors& in, const Planted& planted,
                    const std::function<void(Query&)>& f) {
    Dropout dropout = problem.dropout();
    dropout.site += planted.site;
    const std::vector<unsigned> starts = problem.starts();
    for (unsigned b = 0; b < problem.sequences(); ++b) {
        const unsigned n = problem.lengths[b] - (problem.lengths[b] >= 8 ? planted.missing : 0);
        const unsigned asking = problem.first_only ? std::min(1u, n) : problem.lengths[b];
        for (unsigned i = 0; i < asking; ++i) {
            for (int head = 0; head < problem.heads; ++head) {
                const size_t row = problem.first_only ? b : starts[b] + i;
                const size_t column = static_cast<size_t>(head) * problem.dim;
                Query query{problem,
                            row * problem.width() + column,
                            starts[b] * problem.width() + column,
                            row * problem.heads + head,
                            {},
                            {}};
                const uint64_t row_key =
                    (in.token_keys[starts[b] + i] & 0x00FFFFFFFFFFFFFF) | static_cast<uint64_t>(head) << 56;
                for (unsigned j = 0; j < n; ++j) {
                    const double* key = &in.k[query.first_key + j * problem.width()];
                    const double product = std::inner_product(key, key + problem.dim, &in.q[query.at], 0.0);
                    query.scores.push_back(product / std::sqrt(problem.dim));
                    const bool kept = dropout.threshold == 0 || keeps(dropout, row_key, j);
                    query.factors.push_back(kept ? dropout.scale : 0.0);
                }
                f(query);
            }
        }
    }
}

/// The root of the squares of an inner product's terms.
double spread_of(const double* x, const double* y, size_t count) {
    return std::sqrt(std::inner_product(x, x + count, y, 0.0, std::plus<>(), [](double a, double b) {
        return a * b * a * b;
    }));
}

/// Adds `weight` times `from` to `to`, and to `scale` the square of `most` times its norm.
void add(const Query& query, double weight, double most, const double* from, double* to, double& scale) {
    for (int d = 0; d < query.problem.dim; ++d) {
        to[d] += weight * from[d];
        scale += most * from[d] * most * from[d];
    }
}

void reference_forward(const Problem& problem, const Tensors& in, Reference& out,
                       const Planted& planted = {}) {
    const size_t dim = problem.dim;
    out.values.ctx.assign(in.q.size(), 0.0);
    out.scales.ctx.assign(in.q.size() / dim, 0.0);
    out.values.lse.assign(in.q.size() / dim, 0.0);
    out.scales.lse.assign(in.q.size() / dim, 1.0);
    for_each_query(problem, in, planted, [&](Query& query) {
        const double top = *std::max_element(query.scores.begin(), query.scores.end());
        double total = 0;
        for (const double score : query.scores) {
            total += std::exp(score - top);
        }
        const double lse = top + std::log(total);
        out.values.lse[query.number] = lse;
        out.scales.lse[query.number] = 1 + lse * lse;
        for (size_t j = 0; j < query.scores.size(); ++j) {
            const double p = std::exp(query.scores[j] - lse) * query.factors[j];
            add(query, p, p, &in.v[query.first_key + j * problem.width()], &out.values.ctx[query.at],
                out.scales.ctx[query.at / dim]);
        }
    });
}

/// From `ctx` and `lse` as the kernel left them: rounded.
void reference_backward(const Problem& problem, const Tensors& in, const Matrix& ctx, const Matrix& lse,
                        Reference& out, const Planted& planted = {}) {
    const size_t dim = problem.dim;
    for (Tensors* tensors : {&out.values, &out.scales}) {
        const size_t part = tensors == &out.values ? 1 : dim;
        tensors->dq.assign(in.q.size() / part, 0.0);
        tensors->dk.assign(in.k.size() / part, 0.0);
        tensors->dv.assign(in.k.size() / part, 0.0);
    }
    for_each_query(problem, in, planted, [&](Query& query) {
        const double* dctx = &in.dctx[query.at];
        const double delta = std::inner_product(dctx, dctx + dim, &ctx[query.at], 0.0);
        const double delta_spread = spread_of(dctx, &ctx[query.at], dim);
        for (size_t j = 0; j < query.scores.size(); ++j) {
            const size_t key = query.first_key + j * problem.width();
            const double p = std::exp(query.scores[j] - lse[query.number]);
            const double dropped = p * query.factors[j];
            const double dp = query.factors[j] * std::inner_product(dctx, dctx + dim, &in.v[key], 0.0);
            const double scale = p / std::sqrt(problem.dim);
            const double ds = scale * (dp - delta);
            const double dp_spread = query.factors[j] * spread_of(dctx, &in.v[key], dim);
            const double most = scale * (dp_spread + delta_spread);
            add(query, ds, most, &in.k[key], &out.values.dq[query.at], out.scales.dq[query.at / dim]);
            add(query, ds, most, &in.q[query.at], &out.values.dk[key], out.scales.dk[key / dim]);
            add(query, dropped, dropped, dctx, &out.values.dv[key], out.scales.dv[key / dim]);
        }
    });
}

// --- Memory of the device, with poison around it and in it ---

template <typename T>
class Buffer {
public:
    explicit Buffer(size_t count) : count_(count), bytes_(count * sizeof(T) + 2 * GUARD + 16, 0xFF) {}

    T* get() {
        const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
        return reinterpret_cast<T*>((address + 15) / 16 * 16 + GUARD);
    }
    size_t size() const { return count_; }
    /// The bits, to compare runs; ends the program if something was written beside them.
    std::vector<unsigned char> bits(const char* name) {
        const auto* from = reinterpret_cast<unsigned char*>(get());
        const auto* to = from + count_ * sizeof(T);
        if (std::any_of(from - GUARD, from, [](auto x) { return x != 0xFF; }) ||
            std::any_of(to, to + GUARD, [](auto x) { return x != 0xFF; })) {
            std::printf("something wrote beside %s\n", name);
            std::exit(1);
        }
        return {from, to};
    }
    Matrix numbers() {
        Matrix all(count_);
        std::transform(get(), get() + count_, all.begin(), [](T x) { return to_float(x); });
        return all;
    }

private:
    static constexpr size_t GUARD = 4096;
    size_t count_;
    std::vector<unsigned char> bytes_;
};

template <typename T>
Buffer<T> filled(const Matrix& from) {
    Buffer<T> to(from.size());
    std::transform(from.begin(), from.end(), to.get(),
                   [](double x) { return from_float<T>(static_cast<float>(x)); });
    return to;
}

/// Random inputs, as rounded to T.
template <typename T>
Tensors inputs(const Problem& problem, uint64_t seed) {
    uint64_t state = seed;
    const auto uniform = [&] {
        state = state * 6364136223846793005 + 1442695040888963407;
        return static_cast<double>(state >> 11) / 9007199254740992.0 + 1e-12;
    };
    const auto random = [&](size_t count, double spread, double mean) {
        Matrix all(count);
        for (double& x : all) {
            const double radius = std::sqrt(-2 * std::log(uniform()));
            const double normal = radius * std::cos(6.283185307179586 * uniform());
            x = to_float(from_float<T>(static_cast<float>(mean + spread * normal)));
        }
        return all;
    };
    Tensors tensors;
    tensors.q = random(problem.rows() * problem.width(), problem.spread, problem.bias);
    tensors.k = random(problem.tokens() * problem.width(), problem.spread, -problem.bias);
    tensors.v = random(problem.tokens() * problem.width(), 1, 0);
    tensors.dctx = random(problem.rows() * problem.width(), 1, 0);
    for (unsigned i = 0; i < problem.tokens(); ++i) {
        tensors.token_keys.push_back(static_cast<uint64_t>(uniform() * 1e18));
    }
    return tensors;
}

// --- Kernels ---

template <typename... A>
void launch(const std::string& name, dim3 grid, size_t shared_bytes, A... arguments) {
    const emulator::Kernel* kernel = emulator::find_kernel(name.c_str());
    const size_t bytes[] = {sizeof(A)...};
    if (kernel == nullptr || kernel->argument_count != sizeof...(A) ||
        !std::equal(bytes, bytes + sizeof...(A), kernel->argument_bytes)) {
        std::printf("no kernel %s with these arguments\n", name.c_str());
        std::exit(1);
    }
    if (grid.x == 0) {
        return;
    }
    void* const pointers[] = {&arguments...};
    emulator::require(emulator::run(*kernel, {grid, 128, shared_bytes}, pointers));
}

unsigned ceil_div(unsigned a, unsigned b) { return (a + b - 1) / b; }

using Outputs = std::map<std::string, std::vector<unsigned char>>;

/// Runs the three kernels; results go to `got`, their bits are returned.
template <typename T>
Outputs run(const Problem& problem, const Tensors& tensors, bool fast, Tensors& got) {
    const int hd = problem.dim;
    const std::string type = sizeof(T) == 4 ? "_f32" : fast ? "_bf16_hd" + std::to_string(hd) : "_bf16";
    Buffer<T> q = filled<T>(tensors.q), k = filled<T>(tensors.k), v = filled<T>(tensors.v);
    Buffer<T> dctx = filled<T>(tensors.dctx), ctx(tensors.q.size()), dq(tensors.q.size());
    Buffer<T> dk(tensors.k.size()), dv(tensors.k.size());
    Buffer<float> lse(static_cast<size_t>(problem.rows()) * problem.heads), delta(lse.size());
    Buffer<unsigned> cu_seqlens(problem.sequences() + 1);
    Buffer<uint64_t> token_keys(problem.tokens());
    const std::vector<unsigned> starts = problem.starts();
    std::copy(starts.begin(), starts.end(), cu_seqlens.get());
    std::copy(tensors.token_keys.begin(), tensors.token_keys.end(), token_keys.get());

    const Dropout dropout = problem.dropout();
    const unsigned longest = problem.longest(), asking = problem.first_only ? 1 : longest;
    const auto grid = [&](unsigned rows, unsigned tile) {
        return dim3(ceil_div(rows, tile), problem.heads, problem.sequences());
    };
    const unsigned *cu = cu_seqlens.get();
    const uint64_t *keys = token_keys.get();
    const T *p_q = q.get(), *p_k = k.get(), *p_v = v.get(), *p_dctx = dctx.get();
    if (fast) {
        launch("attention_forward" + type, grid(longest, 64), 640 * hd, p_q, p_k, p_v, ctx.get(), lse.get(),
               cu, keys, dropout);
        launch("attention_backward_dq" + type, grid(longest, 64), 768 * hd, p_dctx, p_q, p_k, p_v,
               ctx.get(), lse.get(), delta.get(), dq.get(), cu, keys, dropout);
        launch("attention_backward_dkdv" + type, grid(longest, 128), 1024 * hd + 3584, p_dctx, p_q, p_k,
               p_v, lse.get(), delta.get(), dk.get(), dv.get(), cu, keys, dropout);
    } else {
        const int first = problem.first_only;
        const size_t shared = 384 * ceil_div(hd, 4) * 4 + 4352;
        launch("attention_forward" + type, grid(asking, 16), shared, p_q, p_k, p_v, ctx.get(), lse.get(),
               cu, keys, hd, first, dropout);
        launch("attention_backward_dq" + type, grid(asking, 16), shared, p_dctx, p_q, p_k, p_v, ctx.get(),
               lse.get(), delta.get(), dq.get(), cu, keys, hd, first, dropout);
        launch("attention_backward_dkdv" + type, grid(longest, 16), shared, p_dctx, p_q, p_k, p_v,
               lse.get(), delta.get(), dk.get(), dv.get(), cu, keys, hd, first, dropout);
    }
    got.ctx = ctx.numbers(), got.lse = lse.numbers(), got.dq = dq.numbers();
    got.dk = dk.numbers(), got.dv = dv.numbers();
    for (Buffer<T>* input : {&q, &k, &v, &dctx}) {
        input->bits("an input");
    }
    return {{"ctx", ctx.bits("ctx")}, {"lse", lse.bits("lse")}, {"delta", delta.bits("delta")},
            {"dq", dq.bits("dq")},    {"dk", dk.bits("dk")},    {"dv", dv.bits("dv")}};
}

// --- Comparisons ---

/// The largest error of a row, in the norm, relative to its scale. NaN or infinite if a number is.
double error_of(const Matrix& got, const Matrix& want, const Matrix& squared_scales) {
    const size_t width = want.size() / squared_scales.size();
    double largest = 0;
    for (size_t row = 0; row < squared_scales.size(); ++row) {
        double error = 0;
        for (size_t i = row * width; i < (row + 1) * width; ++i) {
            error += (got[i] - want[i]) * (got[i] - want[i]);
        }
        // Zeros are exact.
        const double relative = error == 0 ? 0 : std::sqrt(error / squared_scales[row]);
        if (std::isnan(relative)) {
            return relative;
        }
        largest = std::max(largest, relative);
    }
    return largest;
}

struct Named {
    const char* name;
    double error;
    double bound;
};
template <typename T>
std::vector<Named> errors_of(const Tensors& got, const Reference& want) {
    const double exact = 1e-5, bound = sizeof(T) == 4 ? exact : 1e-2;
    const Tensors &values = want.values, &scales = want.scales;
    return {{"ctx", error_of(got.ctx, values.ctx, scales.ctx), bound},
            {"lse", error_of(got.lse, values.lse, scales.lse), exact},
            {"dq", error_of(got.dq, values.dq, scales.dq), bound},
            {"dk", error_of(got.dk, values.dk, scales.dk), bound},
            {"dv", error_of(got.dv, values.dv, scales.dv), bound}};
}

int failures = 0;
void expect(bool holds, const std::string& what, const char* of) {
    if (!holds) {
        std::printf("FAILED %s: %s\n", what.c_str(), of);
        failures += 1;
    }
}

const char* label(const Problem& problem, const char* kernels) {
    static char text[160];
    std::snprintf(text, sizeof text, "%s hd %d, %zu sequences, %s, dropout %.2f, spread %.1f, bias %.0f",
                  kernels, problem.dim, problem.lengths.size(),
                  problem.first_only ? "first tokens" : "all tokens", problem.probability,
                  problem.spread, problem.bias);
    return text;
}

/// Compares with the reference, with a second run in another order, and with planted errors.
template <typename T>
void check(const Problem& problem, bool fast) {
    const std::string what = label(problem, sizeof(T) == 4 ? "f32" : fast ? "bf16 fast" : "bf16");
    const Tensors in = inputs<T>(problem, 11 + problem.dim);
    Tensors got;
    emulator::set_seed(1);
    const Outputs bits = run<T>(problem, in, fast, got);
    Reference want;
    reference_forward(problem, in, want);
    reference_backward(problem, in, got.ctx, got.lse, want);
    std::printf("%-80s", what.c_str());
    const std::vector<Named> errors = errors_of<T>(got, want);
    for (const Named& of : errors) {
        std::printf("  %s %.1e", of.name, of.error);
    }
    std::printf("\n");
    for (const Named& of : errors) {
        expect(of.error < of.bound, what, of.name);
    }

    Tensors again;
    emulator::set_seed(2);
    expect(run<T>(problem, in, fast, again) == bits, what, "another order of threads gave other bits");

    for (const Planted planted : {Planted{1, 0}, Planted{0, 1}}) {
        // (A few keys can be dropped alike by two sites.)
        if (problem.longest() < 8 || (planted.site > 0 && problem.probability == 0)) {
            continue;
        }
        reference_forward(problem, in, want, planted);
        reference_backward(problem, in, got.ctx, got.lse, want, planted);
        for (const Named& of : errors_of<T>(got, want)) {
            const bool differs = planted.missing > 0 || std::string(of.name) != "lse";
            expect(!differs || !(of.error < of.bound), what, "a planted error was not seen");
        }
    }
}

/// A sequence's results have the same bits alone and in company.
template <typename T>
void check_company(const Problem& together, bool fast) {
    const std::string what = label(together, sizeof(T) == 4 ? "f32" : fast ? "bf16 fast" : "bf16");
    const Tensors in = inputs<T>(together, 5);
    Tensors got;
    Outputs all = run<T>(together, in, fast, got);
    const std::vector<unsigned> starts = together.starts();
    for (unsigned b = 0; b < together.sequences(); ++b) {
        Problem alone = together;
        alone.lengths = {together.lengths[b]};
        const unsigned from = together.first_only ? b : starts[b], to = from + alone.rows();
        const auto rows = [&](const Matrix& all, unsigned first, unsigned last) {
            return Matrix(all.begin() + first * together.width(), all.begin() + last * together.width());
        };
        Tensors part;
        part.q = rows(in.q, from, to);
        part.dctx = rows(in.dctx, from, to);
        part.k = rows(in.k, starts[b], starts[b + 1]);
        part.v = rows(in.v, starts[b], starts[b + 1]);
        part.token_keys = {in.token_keys.begin() + starts[b], in.token_keys.begin() + starts[b + 1]};
        for (const auto& [name, bits] : run<T>(alone, part, fast, got)) {
            const bool of_keys = name == "dk" || name == "dv";
            const size_t per_row = all[name].size() / (of_keys ? together.tokens() : together.rows());
            const auto first = all[name].begin() + per_row * (of_keys ? starts[b] : from);
            expect(std::equal(bits.begin(), bits.end(), first), what, "bits depend on the company");
        }
    }
}

/// A NaN in one sequence's input is in all that depends on it, and in nothing of another sequence.
template <typename T>
void check_nan(const Problem& problem, bool fast) {
    const std::string what = label(problem, sizeof(T) == 4 ? "f32" : fast ? "bf16 fast" : "bf16");
    const std::vector<unsigned> starts = problem.starts();
    const unsigned first = starts[1], last = starts[2];
    for (Matrix Tensors::* input : {&Tensors::q, &Tensors::k, &Tensors::v, &Tensors::dctx}) {
        Tensors in = inputs<T>(problem, 3), got;
        (in.*input)[first * problem.width()] = NAN;
        run<T>(problem, in, fast, got);
        const bool scores = input == &Tensors::q || input == &Tensors::k, forward = input != &Tensors::dctx;
        // Of head 0's first row in the sequence, the one with the NaN. (dv's does not see v.)
        const std::vector<std::pair<const Matrix*, bool>> outputs{
            {&got.ctx, forward}, {&got.dq, true}, {&got.dk, true}, {&got.dv, input != &Tensors::v}};
        for (const auto& [output, hit] : outputs) {
            const bool found = std::isnan((*output)[first * problem.width()]);
            expect(found == hit, what, "a NaN was hidden, or made");
            for (size_t i = 0; i < output->size(); ++i) {
                const bool other = i < first * problem.width() || i >= last * problem.width();
                expect(!other || std::isfinite((*output)[i]), what, "a NaN reached another sequence");
            }
        }
        const bool found = std::isnan(got.lse[first * problem.heads]);
        expect(found == scores, what, "a NaN was hidden from lse, or made");
    }
}

}  // namespace

int main() {
    const std::vector<unsigned> mixed{0, 1, 2, 7, 16, 17, 63, 64, 65, 127, 128, 129, 200, 257, 0};
    const std::vector<unsigned> few{33, 0, 129, 1, 65};
    for (const double probability : {0.0, 0.1}) {
        for (const bool first_only : {false, true}) {
            for (const int dim : {12, 20, 64}) {
                check<float>({2, dim, mixed, first_only, probability}, false);
            }
            check<bf16>({2, 20, mixed, first_only, probability}, false);
            check<bf16>({3, 64, mixed, first_only, probability}, false);
        }
        for (const int dim : {32, 64}) {
            check<bf16>({3, dim, mixed, false, probability}, true);
            // Sharp: the largest score grows as keys go by, and exponents are large.
            check<bf16>({1, dim, {200, 129}, false, probability, 3.0}, true);
            // Zeros stand for keys beyond the end: here, their exponents overflow.
            check<bf16>({1, dim, {200, 129}, false, probability, 0.2, 5.0}, true);
            check<bf16>({1, dim, {1}, false, probability}, true);
        }
        check<float>({1, 128, few, false, probability, 2.0}, false);
        check<float>({1, 1, few, false, probability}, false);
        check<float>({1, 97, few, true, probability}, false);
    }
    check<bf16>({1, 64, few, false, 0.5}, true);
    check_company<float>({2, 20, few, false, 0.1}, false);
    check_company<float>({2, 20, few, true, 0.1}, false);
    check_company<bf16>({2, 32, few, false, 0.1}, true);
    check_company<bf16>({2, 64, few, false, 0.1}, true);
    check_nan<float>({2, 20, {3, 70, 50}, false, 0.0}, false);
    check_nan<bf16>({2, 32, {3, 70, 50}, false, 0.0}, true);
    check_nan<bf16>({2, 64, {3, 70, 50}, false, 0.0}, true);
    const Matrix ones(3, 1.0);
    expect(std::isnan(error_of({1, NAN, 1}, ones, ones)), "the comparison", "a NaN was not seen");
    std::printf("%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
