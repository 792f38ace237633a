// Normalization on the CPU, behind XLA's foreign function interface.
//
// Two kernels serve the family. `Rows`: x[rows, n], statistics of every row (layer, RMS; group and instance norm whose
// features come first). `Columns`: x[outer, space, kept, inner], statistics over space and inner (batch, ghost batch,
// group and instance norm whose features come last). Each has a forward and a backward pass. `average` keeps running
// statistics.
//
// Statistics are as good as those of jaxnorm/rules/: squares are of deviations from a first mean, of some of the
// numbers, that lies near; sums of a few thousand numbers are merged by Chan's formula in double precision; the mean is
// carried as mean + residual. A first mean is relative to a first number of its set, so that a constant set gives
// exactly zero.
//
// Work is cut into chunks by shape alone and merged in their order: no result depends on the number of threads.
// Half precision is widened in registers. The part below `JAXNORM_ISA` is compiled once for each instruction set: this
// file includes itself. Absent arrays, in and out, have no elements.

#ifndef JAXNORM_ISA

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif
#if defined(__x86_64__) && !defined(__clang__) && __GNUC__ >= 12 && !defined(JAXNORM_BASELINE)
#define JAXNORM_MULTIVERSION
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

#define INLINE inline __attribute__((always_inline))

namespace jaxnorm {

namespace ffi = xla::ffi;

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

inline int processor() {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

// XLA's threads. The caller works too, and never waits for a helper that has not started: a pool whose threads are
// all inside such calls still gets done.
class Workers {
 public:
  // Waking a thread costs as much as it normalizes in the same time: small inputs stay on the caller's.
  Workers(ffi::ThreadPool* pool, int64_t bytes)
      : pool_(pool), threads_(bytes < kWorthWaking ? 1 : pool->num_threads()) {}

  int64_t threads() const { return threads_; }

  template <class F>
  void Run(int64_t count, const F& f) const {
    const int64_t helpers = std::min(threads_, count) - 1;
    if (helpers <= 0) {
      for (int64_t i = 0; i < count; ++i) f(i);
      return;
    }
    struct Job {
      std::atomic<int64_t> next{0}, done{0};
      std::atomic<bool> helped{false};
    };
    auto job = std::make_shared<Job>();
    // Linux may wake a helper where its caller is running, to wait there beside an idle processor. Whoever wakes up from
    // a nap is placed anew. A late helper finds nothing left, and does not touch f.
    auto help = [job, count, &f, caller = processor()] {
      for (int naps = 0; naps < 4 && caller >= 0 && processor() == caller && job->next.load() < count; ++naps)
        std::this_thread::sleep_for(std::chrono::microseconds(1));
      job->helped.store(true);
      for (int64_t i; (i = job->next.fetch_add(1)) < count; job->done.fetch_add(1)) f(i);
    };
    for (int64_t h = 0; h < helpers; ++h) pool_->Schedule(decltype(help)(help));
    // One that naps for long, or does not even come to it, is soon woken there again: another may have a better place.
    const auto begun = std::chrono::steady_clock::now();
    bool called = false;
    for (int64_t i; (i = job->next.fetch_add(1)) < count; job->done.fetch_add(1)) {
      f(i);
      if (called || job->helped.load() || job->next.load() >= count) continue;
      if (std::chrono::steady_clock::now() - begun < kLate) continue;
      called = true;
      pool_->Schedule(decltype(help)(help));
    }
    while (job->done.load() < count) std::this_thread::yield();
  }

 private:
  static constexpr int64_t kWorthWaking = 256 << 10;
  static constexpr std::chrono::microseconds kLate{50};  // by then a helper that comes has come
  ffi::ThreadPool* pool_;
  int64_t threads_;
};

inline Workers alone() { return Workers(nullptr, 0); }

constexpr int64_t kGrain = 16 << 10;  // numbers worth a task of their own

// Memory whose vectors do not straddle cache lines.
template <class W>
struct Aligned {
  using value_type = W;
  W* allocate(size_t n) { return static_cast<W*>(::operator new(n * sizeof(W), std::align_val_t{64})); }
  void deallocate(W* p, size_t) { ::operator delete(p, std::align_val_t{64}); }
  friend bool operator==(Aligned, Aligned) { return true; }
  friend bool operator!=(Aligned, Aligned) { return false; }
};
template <class W>
using Array = std::vector<W, Aligned<W>>;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct RowsArguments {
  Workers workers;
  ffi::DataType dtype;
  int64_t rows, n;
  int64_t kept, repeat;  // row r uses the parameters of r % kept; each serves `repeat` neighbours
  bool center;
  const void *x, *added, *factor, *bias, *epsilon, *dy, *dh;
  void *y, *sum, *mean, *residual, *var, *dx, *dfactor, *dbias;
};

struct ColumnsArguments {
  Workers workers;
  ffi::DataType dtype;
  int64_t outer, space, kept, inner;
  const void *x, *factor, *bias, *epsilon, *dy;
  void *y, *mean, *residual, *var, *dx, *dfactor, *dbias;
};

}  // namespace jaxnorm

#ifdef JAXNORM_MULTIVERSION
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,avx512bf16")
#define JAXNORM_ISA avx512bf16
#define JAXNORM_BYTES 64
#define JAXNORM_BFLOAT16
#include "cpu.cc"
#undef JAXNORM_ISA
#undef JAXNORM_BYTES
#undef JAXNORM_BFLOAT16
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define JAXNORM_ISA avx512
#define JAXNORM_BYTES 64
#include "cpu.cc"
#undef JAXNORM_ISA
#undef JAXNORM_BYTES
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define JAXNORM_ISA avx2
#define JAXNORM_BYTES 32
#include "cpu.cc"
#undef JAXNORM_ISA
#undef JAXNORM_BYTES
#pragma GCC pop_options
#endif
#define JAXNORM_ISA baseline
#ifndef JAXNORM_BYTES
#define JAXNORM_BYTES 16
#endif
#include "cpu.cc"

namespace jaxnorm {

// Of the best instruction set that this processor has.
#ifdef JAXNORM_MULTIVERSION
#define RUN(kernel, a)                                                                           \
  (!__builtin_cpu_supports("x86-64-v4")                                                          \
       ? __builtin_cpu_supports("x86-64-v3") ? avx2::kernel(a) : baseline::kernel(a)             \
   : (a).dtype == ffi::BF16 && __builtin_cpu_supports("avx512bf16") ? avx512bf16::kernel(a)      \
                                                                    : avx512::kernel(a))
#else
#define RUN(kernel, a) baseline::kernel(a)
#endif

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

const void* data(const In& array) { return array.element_count() ? array.untyped_data() : nullptr; }
void* data(Out& array) { return array->element_count() ? array->untyped_data() : nullptr; }

ffi::Error rows_forward(ffi::ThreadPool pool, In x, In added, In factor, In bias, In epsilon, Out y, Out sum, Out mean,
                        Out residual, Out var, bool center, int64_t kept, int64_t repeat) {
  RowsArguments a{Workers(&pool, 2 * x.size_bytes()), x.element_type()};
  a.rows = x.dimensions()[0], a.n = x.dimensions()[1], a.kept = kept, a.repeat = repeat, a.center = center;
  a.x = data(x), a.added = data(added), a.factor = data(factor), a.bias = data(bias), a.epsilon = data(epsilon);
  a.y = data(y), a.sum = data(sum), a.mean = data(mean), a.residual = data(residual), a.var = data(var);
  return RUN(rows_forward, a);
}

ffi::Error rows_backward(ffi::ThreadPool pool, In x, In factor, In epsilon, In dy, In dh, Out dx, Out dfactor,
                         Out dbias, bool center, int64_t kept, int64_t repeat) {
  RowsArguments a{Workers(&pool, 3 * x.size_bytes()), x.element_type()};
  a.rows = x.dimensions()[0], a.n = x.dimensions()[1], a.kept = kept, a.repeat = repeat, a.center = center;
  a.x = data(x), a.factor = data(factor), a.epsilon = data(epsilon), a.dy = data(dy), a.dh = data(dh);
  a.dx = data(dx), a.dfactor = data(dfactor), a.dbias = data(dbias);
  return RUN(rows_backward, a);
}

// Their shape is given beside them: before an array with dimensions of 1 XLA may put a copy of it.
ColumnsArguments columns(ffi::ThreadPool& pool, const In& x, ffi::Span<const int64_t> shape) {
  return {Workers(&pool, 3 * x.size_bytes()), x.element_type(), shape[0], shape[1], shape[2], shape[3]};
}

ffi::Error columns_forward(ffi::ThreadPool pool, In x, In factor, In bias, In epsilon, Out y, Out mean, Out residual,
                           Out var, ffi::Span<const int64_t> shape) {
  auto a = columns(pool, x, shape);
  a.x = data(x), a.factor = data(factor), a.bias = data(bias), a.epsilon = data(epsilon);
  a.y = data(y), a.mean = data(mean), a.residual = data(residual), a.var = data(var);
  return RUN(columns_forward, a);
}

ffi::Error columns_backward(ffi::ThreadPool pool, In x, In mean, In residual, In var, In factor, In epsilon, In dy,
                            Out dx, Out dfactor, Out dbias, ffi::Span<const int64_t> shape) {
  auto a = columns(pool, x, shape);
  a.x = data(x), a.factor = data(factor), a.epsilon = data(epsilon), a.dy = data(dy);
  a.mean = mean.untyped_data(), a.residual = residual.untyped_data(), a.var = var.untyped_data();
  a.dx = data(dx), a.dfactor = data(dfactor), a.dbias = data(dbias);
  return RUN(columns_backward, a);
}

// A step of a running average; features without enough values keep every bit.
ffi::Error average(ffi::ThreadPool, In mean, In var, In count, In batch_mean, In residual, In batch_var, In n, In past,
                   In fresh, Out new_mean, Out new_var, Out new_count, int64_t ddof) {
  const bool one = n.element_count() == 1;
  if (mean.element_type() != ffi::F32 || n.element_type() != ffi::F32 ||
      (!one && n.element_count() != mean.element_count()))
    return ffi::Error::InvalidArgument("jaxnorm: the average is of float32, n one number or one for each");
  const auto in = [](const In& array) { return static_cast<const float*>(array.untyped_data()); };
  const auto out = [](Out& array) { return static_cast<float*>(array->untyped_data()); };
  const float *m = in(mean), *v = in(var), *c = in(count), *bm = in(batch_mean), *r = in(residual), *bv = in(batch_var);
  const float *values = in(n), w = *in(past), share = *in(fresh), lost = ddof;
  float *__restrict nm = out(new_mean), *__restrict nv = out(new_var), *__restrict nc = out(new_count);
  for (size_t i = 0; i < mean.element_count(); ++i) {
    const float value = values[one ? 0 : i];
    const bool enough = value > lost;
    const float unbiased = bv[i] * (value / (enough ? value - lost : 1));
    nm[i] = enough ? w * m[i] + share * (bm[i] + r[i]) : m[i];
    nv[i] = enough ? w * v[i] + share * unbiased : v[i];
    nc[i] = enough ? c[i] + 1 : c[i];
  }
  return ffi::Error::Success();
}

}  // namespace jaxnorm

#pragma GCC visibility push(default)

#define ARRAY .Arg<jaxnorm::In>()
#define RESULT .Ret<xla::ffi::AnyBuffer>()
#define ROWS .Attr<bool>("center").Attr<int64_t>("kept").Attr<int64_t>("repeat")
#define COLUMNS .Attr<xla::ffi::Span<const int64_t>>("shape")
#define HANDLER(name, binding) \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_##name, jaxnorm::name, xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>() binding)

HANDLER(rows_forward, ARRAY ARRAY ARRAY ARRAY ARRAY RESULT RESULT RESULT RESULT RESULT ROWS);
HANDLER(rows_backward, ARRAY ARRAY ARRAY ARRAY ARRAY RESULT RESULT RESULT ROWS);
HANDLER(columns_forward, ARRAY ARRAY ARRAY ARRAY RESULT RESULT RESULT RESULT COLUMNS);
HANDLER(columns_backward, ARRAY ARRAY ARRAY ARRAY ARRAY ARRAY ARRAY RESULT RESULT RESULT COLUMNS);

HANDLER(average, ARRAY ARRAY ARRAY ARRAY ARRAY ARRAY ARRAY ARRAY ARRAY RESULT RESULT RESULT.Attr<int64_t>("ddof"));

#pragma GCC visibility pop

#else  // ---------------------------------------------------------------------------- once for each instruction set

namespace jaxnorm::JAXNORM_ISA {

// -- Numbers, computed in at least float32 ---------------------------------------------------------------------------

template <class T>
struct Computed {
  using type = float;
};
template <>
struct Computed<double> {
  using type = double;
};
template <class T>
using Wide = typename Computed<T>::type;

template <class W>
struct Vector {
  typedef W type __attribute__((vector_size(JAXNORM_BYTES)));
};
template <class W>
using Vec = typename Vector<W>::type;
using Words = Vec<uint32_t>;
using Halves = Vec<uint16_t>;
using Floats = Vec<float>;

// Half precision is computed two vectors at once: of two numbers in a word the lower half is the even one.
struct Pair {
  Floats even, odd;
};
#define PAIRWISE(op)                                                                     \
  INLINE Pair operator op(Pair a, Pair b) { return {a.even op b.even, a.odd op b.odd}; } \
  INLINE Pair operator op(Pair a, float b) { return {a.even op b, a.odd op b}; }
PAIRWISE(+)
PAIRWISE(-)
PAIRWISE(*)
#undef PAIRWISE
INLINE Pair& operator+=(Pair& a, Pair b) { return a = a + b; }

template <class T>
constexpr bool kHalf = sizeof(T) == 2;
template <class T>
using Numbers = std::conditional_t<kHalf<T>, Pair, Vec<Wide<T>>>;
template <class T>
constexpr int64_t kLanes = JAXNORM_BYTES / sizeof(T);

template <class V>
INLINE V read(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
INLINE void write(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

INLINE Pair widen(Words w, bfloat16) { return {(Floats)(w << 16), (Floats)(w & 0xffff0000)}; }

INLINE Floats widen_lower(Words w) {
  const Words magnitude = w & 0x7fff;
  const Words infinite = (Words)(magnitude >= 0x7c00) & 0x38000000;
  const Words normal = (magnitude << 13) + 0x38000000 + infinite;
  const Words subnormal = (Words)(__builtin_convertvector(magnitude, Floats) * 0x1p-24f);
  return (Floats)((magnitude < 0x400 ? subnormal : normal) | (w & 0x8000) << 16);
}
INLINE Pair widen(Words w, float16) { return {widen_lower(w), widen_lower(w >> 16)}; }

#ifdef JAXNORM_BFLOAT16
// By its own instruction, which takes subnormal numbers for zero, as XLA's threads do in all arithmetic.
INLINE Words narrow(Pair v, bfloat16) {
  const Halves both = (Halves)_mm512_cvtne2ps_pbh((__m512)v.odd, (__m512)v.even);
  const Halves turns = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return (Words)__builtin_shuffle(both, turns);
}
#else
// To the nearest, ties to even. The NaN of a computation has a bit in the upper half: cut off, it stays one.
INLINE Words narrow(Pair v, bfloat16) {
  const Words even = (Words)v.even, odd = (Words)v.odd;
  const Halves upper = (Halves)(even >> 16 | (odd & 0xffff0000)), lower = (Halves)((even & 0xffff) | odd << 16);
  const Halves up = (Halves)((lower | (upper & 1)) > 0x8000) & (Halves)((upper & 0x7f80) != 0x7f80);
  return (Words)(upper - up);
}
#endif

INLINE Words narrow_one(Floats v) {
  const Words u = (Words)v, magnitude = u & 0x7fffffff;
  const Words normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;
  const Words subnormal = (Words)((Floats)magnitude + 0.5f) - 0x3f000000;
  Words h = magnitude < 0x38800000 ? subnormal : normal;
  h = magnitude >= 0x47800000 ? Words{} + 0x7c00 : h;
  h = v != v ? Words{} + 0x7e00 : h;
  return h | (u & 0x80000000) >> 16;
}
INLINE Words narrow(Pair v, float16) { return narrow_one(v.even) | narrow_one(v.odd) << 16; }

template <class T>
INLINE Numbers<T> load(const T* p) {
  if constexpr (kHalf<T>)
    return widen(read<Words>(p), T{});
  else
    return read<Vec<T>>(p);
}

template <class T>
INLINE void store(T* p, Numbers<T> v) {
  if constexpr (kHalf<T>)
    write(p, narrow(v, T{}));
  else
    write(p, v);
}

// A whole vector, or the first `count` lanes of one; the other lanes are zero.
struct Whole {};
struct Part {
  int64_t count;
};

template <class T>
INLINE Numbers<T> load(const T* p, Whole) {
  return load(p);
}

template <class T>
INLINE Numbers<T> load(const T* p, Part part) {
  T lanes[kLanes<T>] = {};
  std::memcpy(lanes, p, part.count * sizeof(T));
  return load(lanes);
}

template <class T>
INLINE Wide<T> first(const T* p) {
  if constexpr (kHalf<T>)
    return widen(Words{} + p->bits, T{}).even[0];
  else
    return *p;
}

template <class T>
INLINE void store(T* p, Numbers<T> v, Whole) {
  store(p, v);
}

template <class T>
INLINE void store(T* p, Numbers<T> v, Part part) {
  T lanes[kLanes<T>];
  store(lanes, v);
  std::memcpy(p, lanes, part.count * sizeof(T));
}

template <class V>
INLINE V keep(V v, Whole) {
  return v;
}

template <class V>
INLINE V keep(V v, Part part) {
  char lanes[3 * sizeof v] = {};
  std::memcpy(lanes, &v, sizeof v);
  std::memcpy(lanes + part.count * sizeof v[0], lanes + 2 * sizeof v, sizeof v);
  return read<V>(lanes);
}

INLINE Pair keep(Pair v, Part part) {
  return {keep(v.even, Part{(part.count + 1) / 2}), keep(v.odd, Part{part.count / 2})};
}

template <class W, int kBytes = JAXNORM_BYTES, class V>
INLINE W total(const V& v) {
  if constexpr (kBytes == sizeof(W)) {
    return v[0];
  } else {
    typedef W Half __attribute__((vector_size(kBytes / 2)));
    return total<W, kBytes / 2>(read<Half>(&v) + read<Half>(reinterpret_cast<const char*>(&v) + kBytes / 2));
  }
}

template <class W>
INLINE W total(const Pair& v) {
  return total<W>(v.even + v.odd);
}

template <class W, class V>
INLINE W total(const V (&v)[1]) {
  return total<W>(v[0]);
}

template <class W, class V>
INLINE W total(const V (&v)[4]) {
  return total<W>((v[0] + v[1]) + (v[2] + v[3]));
}

// f(j, whole or part, u) for every vector of n columns; where `kSums` is 4, u in 0..3 takes turns among as many sums.
template <class T, int kSums = 1, class F>
INLINE void each(int64_t n, F f) {
  constexpr int64_t L = kLanes<T>;
  int64_t j = 0;
  if constexpr (kSums == 4) {
    for (; j + 4 * L <= n; j += 4 * L) {
      f(j, Whole{}, 0);
      f(j + L, Whole{}, 1);
      f(j + 2 * L, Whole{}, 2);
      f(j + 3 * L, Whole{}, 3);
    }
  }
  for (; j + L <= n; j += L) f(j, Whole{}, 0);
  if (j < n) f(j, Part{n - j}, 0);
}
#define LANES (int64_t j, auto part, int u) __attribute__((always_inline))

template <class W>
INLINE const W* pointer(const void* p) {
  return static_cast<const W*>(p);
}
template <class W>
INLINE W* pointer(void* p) {
  return static_cast<W*>(p);
}

// -- Parameters and sums: one for each column, in the order in which vectors hold them, padded to whole ones ----------

template <class T>
INLINE int64_t place(int64_t i) {
  constexpr int64_t L = kLanes<T>;
  return kHalf<T> ? i / L * L + i % 2 * (L / 2) + i % L / 2 : i;
}

template <class T>
INLINE int64_t padded(int64_t count) {
  return ceil_div(count, kLanes<T>) * kLanes<T>;
}

template <class T>
INLINE Numbers<T> get(const Wide<T>* p) {
  if constexpr (kHalf<T>)
    return {read<Floats>(p), read<Floats>(p + kLanes<T> / 2)};
  else
    return read<Vec<T>>(p);
}

template <class T>
INLINE void put(Wide<T>* p, Numbers<T> v) {
  if constexpr (kHalf<T>)
    write(p, v.even), write(p + kLanes<T> / 2, v.odd);
  else
    write(p, v);
}

template <class T, class W>
void arrange(const W* given, int64_t count, W* placed) {
  for (int64_t i = 0; i < count; ++i) placed[place<T>(i)] = given[i];
}

template <class T, class W, class X>
void restore(const X* placed, int64_t count, W* given) {
  for (int64_t i = 0; i < count; ++i) given[i] = static_cast<W>(placed[place<T>(i)]);
}

// -- Statistics ------------------------------------------------------------------------------------------------------

template <class W, int kRows>
struct Statistics {
  W mean[kRows], residual[kRows], var[kRows];
};

// Moments of `count` numbers, the mean relative to an origin near them.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  void Merge(double n, double mean_of, double squares_of) {  // Chan, Golub & LeVeque 1983
    const double delta = mean_of - mean, share = count ? n / (count + n) : 1;
    mean += delta * share;
    squares += squares_of + delta * delta * (count * share);
    count += n;
  }

  template <class W>
  Statistics<W, 1> From(W origin) const {
    if (count == 0) return {{0}, {0}, {1}};  // as an untouched state
    const W rounded = static_cast<W>(origin + mean);
    const double var = squares / count;
    const double residual = mean - (static_cast<double>(rounded) - origin);
    return {{rounded}, {static_cast<W>(residual)}, {static_cast<W>(var < 0 ? 0 : var)}};
  }
};

// -- Rows ------------------------------------------------------------------------------------------------------------

constexpr int64_t kShort = 16 * JAXNORM_BYTES;  // numbers of a row that are measured together with others: 64 vectors
constexpr int64_t kLong = 1536;                 // where a row and its parameters no longer share the first cache
constexpr int64_t kSegment = 4096;              // numbers summed in x's precision; they stay in the first cache

// Of each row: a first mean, and the sums of the deviations from it and of their squares. That mean, g, is of an eighth
// of the row, of which (g - mean)^2 <= 7 var is certain: whatever the numbers, squares lose three bits to it at most.
template <class W, int kRows>
struct Deviations {
  W mean[kRows], sum[kRows], squares[kRows];
};

template <class T, int kRows, int kSums, class W = Wide<T>>
INLINE Deviations<W, kRows> deviations(const T* x, int64_t stride, int64_t count, bool center) {
  using V = Numbers<T>;
  Deviations<W, kRows> of = {};
  V sum[kRows][kSums] = {}, squares[kRows][kSums] = {};
  if (center) {
    W origin[kRows];
    for (int k = 0; k < kRows; ++k) origin[k] = first(x + k * stride);
    const int64_t some = std::min(count, padded<T>(ceil_div(count, 8)));
    each<T>(some, [&] LANES {
      for (int k = 0; k < kRows; ++k) sum[k][0] += keep(load(x + k * stride + j, part) - origin[k], part);
    });
    const W share = W{1} / some;
    for (int k = 0; k < kRows; ++k) of.mean[k] = origin[k] + total<W>(sum[k][0]) * share, sum[k][0] = V{};
    each<T, kSums>(count, [&] LANES {
      for (int k = 0; k < kRows; ++k) {
        const V d = keep(load(x + k * stride + j, part) - of.mean[k], part);
        sum[k][u] += d, squares[k][u] += d * d;
      }
    });
  } else {
    each<T, kSums>(count, [&] LANES {
      for (int k = 0; k < kRows; ++k) {
        const V v = load(x + k * stride + j, part);
        squares[k][u] += v * v;
      }
    });
  }
  for (int k = 0; k < kRows; ++k) of.sum[k] = total<W>(sum[k]), of.squares[k] = total<W>(squares[k]);
  return of;
}

template <class T, class W = Wide<T>>
__attribute__((noinline)) Statistics<W, 1> measure_long(const T* x, int64_t n, bool center) {
  Moments moments;
  const W origin = center && n ? first(x) : 0;
  for (int64_t begin = 0; begin < n; begin += kSegment) {
    const int64_t count = std::min(kSegment, n - begin);
    const auto d = deviations<T, 1, 4>(x + begin, n, count, center);
    const double rest = static_cast<double>(d.sum[0]) / count;
    moments.Merge(count, (static_cast<double>(d.mean[0]) - origin) + rest, d.squares[0] - d.sum[0] * rest);
  }
  return moments.From(origin);
}

template <class T, int kRows, class W = Wide<T>>
INLINE void measure(const T* x, int64_t n, bool center, Statistics<W, kRows>& s) {
  if (n == 0 || n > kShort) {
    for (int k = 0; k < kRows; ++k) {
      const auto one = measure_long(x + k * n, n, center);
      s.mean[k] = one.mean[0], s.residual[k] = one.residual[0], s.var[k] = one.var[0];
    }
    return;
  }
  const auto d = deviations<T, kRows, kHalf<T> ? 1 : 4>(x, n, n, center);
  const double share = 1.0 / n;
  for (int k = 0; k < kRows; ++k) {
    const double rest = d.sum[k] * share, mean = d.mean[k], var = (d.squares[k] - d.sum[k] * rest) * share;
    s.mean[k] = static_cast<W>(mean + rest);
    s.residual[k] = static_cast<W>(rest - (s.mean[k] - mean));
    s.var[k] = static_cast<W>(var < 0 ? 0 : var);
  }
}

// What makes xhat = (x - mean) inverse + shift of x.
template <class W, int kRows>
struct Scaling {
  W inverse[kRows], shift[kRows];

  Scaling(const Statistics<W, kRows>& s, W epsilon) {
    for (int k = 0; k < kRows; ++k) inverse[k] = 1 / std::sqrt(s.var[k] + epsilon);
    for (int k = 0; k < kRows; ++k) shift[k] = -s.residual[k] * inverse[k];
  }
};

// The parameters of all rows. A row has one for each column, or (`kShared`) one for every `repeat` neighbours.
template <class T, bool kShared, class W = Wide<T>>
class Parameters {
 public:
  explicit Parameters(const RowsArguments& a)
      : kept_(a.kept), count_(a.n / a.repeat), size_(kShared ? count_ : padded<T>(count_)) {}

  int64_t size() const { return kept_ * size_; }
  int64_t begin(int64_t row) const { return row % kept_ * size_; }

  Array<W> Placed(const void* given, W otherwise) const {
    Array<W> all(size(), otherwise);
    for (int64_t k = 0; given && k < kept_; ++k)
      arrange<Order>(pointer<W>(given) + k * count_, count_, &all[k * size_]);
    return all;
  }

  void Restore(const Array<W>& placed, W* given) const {
    for (int64_t k = 0; k < kept_; ++k) restore<Order>(&placed[k * size_], count_, given + k * count_);
  }

 private:
  using Order = std::conditional_t<kShared, W, T>;
  int64_t kept_, count_, size_;
};

template <class T, bool kShared>
INLINE Numbers<T> parameter(const Wide<T>* p, int64_t j) {
  if constexpr (kShared)
    return Numbers<T>{} + *p;
  else
    return get<T>(p + j);
}

// f(how many rows, the first, their parameters): those that share parameters at once, or one after the other.
template <int kRows, class F>
INLINE void sharing(bool together, int64_t kept, F f) {
  if (kept == 1 && together)
    f(std::integral_constant<int, kRows>{}, 0);
  else
    for (int k = 0; k < kRows; ++k) f(std::integral_constant<int, 1>{}, k);
}

// The rows from r on, `kRows` of them.
template <class T, bool kShared, int kRows, class W = Wide<T>>
void forward_some(const RowsArguments& a, int64_t r, const Parameters<T, kShared>& parameters, const W* factors,
                  const W* biases) {
  using V = Numbers<T>;
  const T* x = pointer<T>(a.x) + r * a.n;
  const int64_t n = a.n;
  if (a.added) {
    const T* added = pointer<T>(a.added) + r * n;
    T* sum = pointer<T>(a.sum) + r * n;
    each<T>(kRows * n, [&] LANES { store(sum + j, load(x + j, part) + load(added + j, part), part); });
    x = sum;
  }
  Statistics<W, kRows> s;
  measure<T, kRows>(x, n, a.center, s);
  const Scaling<W, kRows> to(s, *pointer<W>(a.epsilon));
  if (a.mean) {
    std::copy_n(s.mean, kRows, pointer<W>(a.mean) + r);
    std::copy_n(s.residual, kRows, pointer<W>(a.residual) + r);
    std::copy_n(s.var, kRows, pointer<W>(a.var) + r);
  }
  if (!a.y) return;
  const int64_t run = kShared ? a.repeat : n;
  // Short rows are written one after the other: processors foresee one stream of writes, not four.
  sharing<kRows>(n >= kLong, a.kept, [&](auto some, int from) __attribute__((always_inline)) {
    const T* p = x + from * n;
    T* y = pointer<T>(a.y) + (r + from) * n;
    const W *factor = factors + parameters.begin(r + from), *bias = biases + parameters.begin(r + from);
    for (int64_t begin = 0; begin < n; begin += run, p += run, y += run, ++factor, ++bias)
      each<T>(run, [&] LANES {
        const V f = parameter<T, kShared>(factor, j), b = parameter<T, kShared>(bias, j);
        V v[some.value];  // all read before any is written: rows a page apart look alike to a processor that runs ahead
        for (int k = 0; k < some.value; ++k)
          v[k] = ((load(p + k * n + j, part) - s.mean[from + k]) * to.inverse[from + k] + to.shift[from + k]) * f + b;
        for (int k = 0; k < some.value; ++k) store(y + k * n + j, v[k], part);
      });
  });
}

template <class T, bool kShared, int kRows, class W = Wide<T>>
void backward_some(const RowsArguments& a, int64_t r, const Parameters<T, kShared>& parameters, const W* factors,
                   W* dfactors, W* dbiases) {
  using V = Numbers<T>;
  const T *x = pointer<T>(a.x) + r * a.n, *dy = pointer<T>(a.dy) + r * a.n;
  const int64_t n = a.n, run = kShared ? a.repeat : n;
  Statistics<W, kRows> s;
  measure<T, kRows>(x, n, a.center, s);
  const Scaling<W, kRows> to(s, *pointer<W>(a.epsilon));
  V sum[kRows] = {}, product[kRows] = {};  // of the gradient of xhat; of it and xhat
  sharing<kRows>(true, a.kept, [&](auto some, int from) __attribute__((always_inline)) {
    const int64_t at = parameters.begin(r + from);
    for (int64_t begin = 0, p = at; begin < n; begin += run, ++p) {
      V gradients = {}, products = {};
      each<T>(run, [&] LANES {
        const V f = parameter<T, kShared>(factors + p, j);
        V all = {}, all_products = {};
        for (int k = from; k < from + some.value; ++k) {
          const int64_t i = k * n + begin + j;
          const V xhat = keep((load(x + i, part) - s.mean[k]) * to.inverse[k] + to.shift[k], part);
          const V g = load(dy + i, part), gx = g * xhat;
          sum[k] += g * f, product[k] += gx * f;
          all += g, all_products += gx;
        }
        if constexpr (kShared) {
          gradients += all, products += all_products;
        } else {
          if (dfactors) put<T>(dfactors + p + j, get<T>(dfactors + p + j) + all_products);
          if (dbiases) put<T>(dbiases + p + j, get<T>(dbiases + p + j) + all);
        }
      });
      if constexpr (kShared) {
        if (dfactors) dfactors[p] += total<W>(products);
        if (dbiases) dbiases[p] += total<W>(gradients);
      }
    }
  });
  if (!a.dx) return;
  W offset[kRows], slope[kRows];
  for (int k = 0; k < kRows; ++k) {
    offset[k] = a.center ? total<W>(sum[k]) / n : 0, slope[k] = total<W>(product[k]) / n;
  }
  T* dx = pointer<T>(a.dx) + r * n;
  const T* dh = a.dh ? pointer<T>(a.dh) + r * n : nullptr;
  sharing<kRows>(n >= kLong, a.kept, [&](auto some, int from) __attribute__((always_inline)) {
    const W* factor = factors + parameters.begin(r + from);
    for (int64_t begin = 0; begin < n; begin += run, ++factor)
      each<T>(run, [&] LANES {
        const V f = parameter<T, kShared>(factor, j);
        V v[some.value];
        for (int k = 0; k < some.value; ++k) {
          const int64_t i = (from + k) * n + begin + j;
          const V xhat = (load(x + i, part) - s.mean[from + k]) * to.inverse[from + k] + to.shift[from + k];
          v[k] = ((load(dy + i, part) * f - offset[from + k]) - xhat * slope[from + k]) * to.inverse[from + k];
          if (dh) v[k] += load(dh + i, part);
        }
        for (int k = 0; k < some.value; ++k) store(dx + (from + k) * n + begin + j, v[k], part);
      });
  });
}

// Four rows at once share what they wait for, or, long ones, a reading of the parameters. Short ones of whole precision
// are worth more as one stream, which processors foresee. Not where it is rare, for the compiler's time.
template <class T, bool kShared>
constexpr bool kFours = !kShared && sizeof(T) < 8;

// f(how many rows, the first)
template <class T, bool kShared, class F>
INLINE void rows(int64_t n, int64_t begin, int64_t end, F f) {
  if constexpr (kFours<T, kShared>) {
    const bool fours = kHalf<T> || n >= kLong;
    for (; fours && begin + 4 <= end; begin += 4) f(std::integral_constant<int, 4>{}, begin);
  }
  for (; begin < end; ++begin) f(std::integral_constant<int, 1>{}, begin);
}

template <class T, bool kShared>
void forward_rows(const RowsArguments& a) {
  using W = Wide<T>;
  const Parameters<T, kShared> parameters(a);
  const auto factor = a.y ? parameters.Placed(a.factor, 1) : Array<W>();
  const auto bias = a.y ? parameters.Placed(a.bias, 0) : Array<W>();
  const int64_t chunk = ceil_div(kGrain, 4 * std::max<int64_t>(a.n, 1)) * 4;
  a.workers.Run(ceil_div(a.rows, chunk), [&](int64_t c) {
    rows<T, kShared>(a.n, c * chunk, std::min(a.rows, (c + 1) * chunk), [&](auto some, int64_t r) {
      forward_some<T, kShared, some.value>(a, r, parameters, factor.data(), bias.data());
    });
  });
}

template <class T, bool kShared>
void backward_rows(const RowsArguments& a) {
  using W = Wide<T>;
  const Parameters<T, kShared> parameters(a);
  const auto factor = parameters.Placed(a.factor, 1);
  // A task has some of the rows and sums of its own, or, of many sets of parameters, some with all of their rows.
  const bool by_set = a.kept >= 16;
  const int64_t turns = by_set ? a.rows / a.kept : 1, rows_of_turn = by_set ? a.kept : a.rows;
  const int64_t least = by_set ? 1 : 8 * a.kept, numbers = std::max<int64_t>(a.n * turns, 1);
  const int64_t chunk = ceil_div(std::max({least, ceil_div(rows_of_turn, 64), kGrain / numbers}), 4) * 4;
  const int64_t chunks = ceil_div(rows_of_turn, chunk), parts = by_set ? 1 : chunks, size = parameters.size();
  Array<W> dfactor(a.dfactor ? parts * size : 0), dbias(a.dbias ? parts * size : 0);
  a.workers.Run(chunks, [&](int64_t c) {
    W* own_dfactor = a.dfactor ? &dfactor[by_set ? 0 : c * size] : nullptr;
    W* own_dbias = a.dbias ? &dbias[by_set ? 0 : c * size] : nullptr;
    for (int64_t turn = 0; turn < turns; ++turn) {
      const int64_t from = turn * rows_of_turn, end = from + std::min(rows_of_turn, (c + 1) * chunk);
      rows<T, kShared>(a.n, from + c * chunk, end, [&](auto some, int64_t r) {
        backward_some<T, kShared, some.value>(a, r, parameters, factor.data(), own_dfactor, own_dbias);
      });
    }
  });
  const auto add = [&](const Array<W>& of, void* sum) {
    if (!sum) return;
    Array<W> all(size, W{0});
    for (int64_t c = 0; c < parts; ++c)
      for (int64_t p = 0; p < size; ++p) all[p] += of[c * size + p];
    parameters.Restore(all, pointer<W>(sum));
  };
  add(dfactor, a.dfactor);
  add(dbias, a.dbias);
}

// -- Columns ---------------------------------------------------------------------------------------------------------

constexpr int64_t kTile = 512;  // columns whose sums stay in the first cache
constexpr int64_t kAhead = 8;   // rows fetched before they are read; processors foresee one stream, not four
constexpr int64_t kBlock = 64;  // rows summed in x's precision before they are merged in double

INLINE void merge(double& mean, double& squares, double mean_of, double squares_of, double share, double weight) {
  const double delta = mean_of - mean;
  mean += delta * share;
  squares += squares_of + delta * delta * weight;
}

// One slab x[space, kept, inner], seen as wide rows: narrow ones are folded, several to a row of whole vectors. Arrays
// of columns are placed as vectors hold them.
template <class T>
class Slab {
  using W = Wide<T>;
  using V = Numbers<T>;
  static constexpr int64_t L = kLanes<T>;

 public:
  explicit Slab(const ColumnsArguments& a) : a_(a), features_(a.kept * a.inner) {
    fold_ = 1;
    if (features_ < 16 * L) while (fold_ * features_ < 4 * L || fold_ * features_ % L) ++fold_;
    width_ = fold_ * features_;
    padded_ = padded<T>(width_);
    rows_ = a.space / fold_;
    rest_ = a.space % fold_;
    chunk_ = std::max({int64_t{64}, ceil_div(rows_, 64), 2 * kGrain / width_});
    chunks_ = std::max<int64_t>(1, ceil_div(rows_, chunk_));
    strip_ = ceil_div(width_, std::clamp<int64_t>(width_ / (4 * kTile), 1, ceil_div(64, chunks_)) * kTile) * kTile;
    strips_ = ceil_div(width_, strip_);
    first_.resize(chunks_ * padded_);
    second_.resize(chunks_ * padded_);
    for (auto* p : {&origin_, &mean_, &residual_, &var_, &factor_, &bias_, &scale_, &slope_, &shift_})
      p->resize(padded_);
    std::fill(factor_.begin(), factor_.end(), W{1});
    if (a.factor) arrange<T>(pointer<W>(a.factor), features_, factor_.data());
    if (a.bias) arrange<T>(pointer<W>(a.bias), features_, bias_.data());
  }

  static int64_t tasks(const ColumnsArguments& a) { return a.space * a.kept * a.inner / (2 * kGrain); }

  void Forward(int64_t o, const Workers& workers) {
    W* statistics[] = {pointer<W>(a_.mean), pointer<W>(a_.residual), pointer<W>(a_.var)};
    for (auto& p : statistics) p += o * a_.kept;
    x_ = pointer<T>(a_.x) + o * a_.space * features_;
    for (int64_t f = 0; f < features_; ++f) origin_[place<T>(f)] = jaxnorm::JAXNORM_ISA::first(x_ + f);
    spread(origin_);
    pieces(workers, [&](int64_t c, int64_t from, int64_t to) {
      moments(c, from, to, &first_[c * padded_], &second_[c * padded_]);
    });
    merge_chunks();
    if (a_.inner > 1) workers.Run(a_.kept, [&](int64_t g) { group(g * a_.inner, (g + 1) * a_.inner); });
    conclude();
    for (int64_t g = 0; g < a_.kept; ++g) {
      const int64_t at = place<T>(g * a_.inner);
      statistics[0][g] = mean_[at], statistics[1][g] = residual_[at], statistics[2][g] = var_[at];
    }
    if (!a_.y) return;
    const W epsilon = *pointer<W>(a_.epsilon);
    for (int64_t j = 0; j < padded_; ++j) {
      scale_[j] = factor_[j] / std::sqrt(var_[j] + epsilon);
      shift_[j] = bias_[j] - residual_[j] * scale_[j];
    }
    for (auto* p : {&mean_, &scale_, &shift_}) spread(*p);
    T* y = pointer<T>(a_.y) + o * a_.space * features_;
    struct Given {
      V mean, scale, shift;
    };
    const W *mean = mean_.data(), *scale = scale_.data(), *shift = shift_.data();
    backwards<Given>(
        workers,
        [=](int64_t j) __attribute__((always_inline)) {
          return Given{get<T>(mean + j), get<T>(scale + j), get<T>(shift + j)};
        },
        [=, x = x_](const Given& of, int64_t at, auto part) __attribute__((always_inline)) {
          store(y + at, (load(x + at, part) - of.mean) * of.scale + of.shift, part);
        });
  }

  // Adds to dfactor and dbias, of `padded<T>(features)` each.
  void Backward(int64_t o, const Workers& workers, double* dfactor, double* dbias) {
    x_ = pointer<T>(a_.x) + o * a_.space * features_;
    dy_ = pointer<T>(a_.dy) + o * a_.space * features_;
    for (int64_t f = 0; f < features_; ++f) {
      const int64_t from = o * a_.kept + f / a_.inner, at = place<T>(f);
      mean_[at] = pointer<W>(a_.mean)[from];
      residual_[at] = pointer<W>(a_.residual)[from];
      var_[at] = pointer<W>(a_.var)[from];
    }
    spread(mean_);
    pieces(workers, [&](int64_t c, int64_t from, int64_t to) {
      sums(c, from, to, &first_[c * padded_], &second_[c * padded_]);
    });
    add_chunks();
    const double share = 1.0 / (a_.space * a_.inner);
    const W epsilon = *pointer<W>(a_.epsilon);
    const int64_t features = padded<T>(features_);
    for (int64_t j = 0; j < features; ++j) {
      scale_[j] = 1 / std::sqrt(var_[j] + epsilon);
      const double xhat = (second_[j] - first_[j] * residual_[j]) * scale_[j];
      dbias[j] += first_[j], dfactor[j] += xhat;
      first_[j] *= factor_[j], second_[j] = factor_[j] * xhat;
    }
    if (!a_.dx) return;
    if (a_.inner > 1)
      workers.Run(a_.kept, [&](int64_t g) {
        double sum = 0, product = 0;
        const int64_t begin = g * a_.inner, end = begin + a_.inner;
        for (int64_t f = begin; f < end; ++f) sum += first_[place<T>(f)], product += second_[place<T>(f)];
        for (int64_t f = begin; f < end; ++f) first_[place<T>(f)] = sum, second_[place<T>(f)] = product;
      });
    for (int64_t j = 0; j < features; ++j) {
      const W inverse = scale_[j];
      slope_[j] = -static_cast<W>(second_[j] * share) * inverse * inverse;
      shift_[j] = -static_cast<W>(first_[j] * share) * inverse - slope_[j] * residual_[j];
      scale_[j] = inverse * factor_[j];
    }
    for (auto* p : {&scale_, &slope_, &shift_}) spread(*p);
    T* dx = pointer<T>(a_.dx) + o * a_.space * features_;
    struct Given {
      V mean, scale, slope, shift;
    };
    const W *mean = mean_.data(), *scale = scale_.data(), *slope = slope_.data(), *shift = shift_.data();
    backwards<Given>(
        workers,
        [=](int64_t j) __attribute__((always_inline)) {
          return Given{get<T>(mean + j), get<T>(scale + j), get<T>(slope + j), get<T>(shift + j)};
        },
        [=, x = x_, dy = dy_](const Given& of, int64_t at, auto part) __attribute__((always_inline)) {
          const V of_x = (load(x + at, part) - of.mean) * of.slope + of.shift;
          store(dx + at, load(dy + at, part) * of.scale + of_x, part);
        });
  }

 private:
  // To the copies of a folded row.
  void spread(Array<W>& p) const {
    for (int64_t f = features_; f < width_; ++f) p[place<T>(f)] = p[place<T>(f - features_)];
  }

  // f(chunk of rows, first column, last): of few and wide rows the columns are shared out too. `backwards` begins with
  // the last, which are still in a cache from the pass before.
  template <class F>
  INLINE void pieces(const Workers& workers, F f, bool backwards = false) const {
    workers.Run(chunks_ * strips_, [&](int64_t i) {
      const int64_t piece = backwards ? chunks_ * strips_ - 1 - i : i, from = piece % strips_ * strip_;
      f(piece / strips_, from, std::min(width_, from + strip_));
    });
  }

  // f(first row, how many, first column, how many): blocks of one piece, tile by tile.
  template <class F>
  INLINE void blocks(int64_t c, int64_t from, int64_t to, F f) const {
    const int64_t end = std::min(rows_, (c + 1) * chunk_);
    for (int64_t column = from; column < to; column += kTile)
      for (int64_t row = c * chunk_; row < end; row += kBlock)
        f(row, std::min(kBlock, end - row), column, std::min(kTile, to - column));
  }

  // Near the mean, so that squares around it lose few bits to its distance; of equal numbers that very number.
  template <class P>
  INLINE V guess(const T* x, int64_t count, P part) const {
    const V one = load(x, part);
    const int64_t some = std::min<int64_t>(count, 8);
    V sum = {};
    for (int64_t k = 1; k < some; ++k) sum += load(x + k * width_, part) - one;
    return one + sum * (W{1} / some);
  }

  void moments(int64_t c, int64_t from, int64_t to, double* __restrict mean, double* __restrict squares) const {
    std::fill(mean + from, mean + padded<T>(to), 0);
    std::fill(squares + from, squares + padded<T>(to), 0);
    alignas(64) W shift[kTile], sum[kTile], square[kTile];
    const auto block = [&](int64_t row, int64_t count, int64_t column, int64_t columns) __attribute__((always_inline)) {
      const T* x = x_ + row * width_ + column;
      const bool begins = row == c * chunk_;
      const int64_t all = padded<T>(columns);
      for (int64_t j = 0; j < all && !begins; ++j) shift[j] = static_cast<W>(origin_[column + j] + mean[column + j]);
      each<T>(columns, [&] LANES {
        if (begins) put<T>(shift + j, guess(x + j, count, part));
        put<T>(sum + j, V{});
        put<T>(square + j, V{});
      });
      quads(0, count, [&](auto rows, int64_t r) __attribute__((always_inline)) {
        each<T>(columns, [&] LANES {
          const V origin = get<T>(shift + j);
          V s = get<T>(sum + j), q = get<T>(square + j);
          for (int k = 0; k < rows.value; ++k) {
            const T* p = x + (r + k) * width_ + j;
            __builtin_prefetch(p + kAhead * width_);
            const V d = load(p, part) - origin;
            s += d, q += d * d;
          }
          put<T>(sum + j, s);
          put<T>(square + j, q);
        });
      });
      const double before = row - c * chunk_, share = count / (before + count), weight = before * share;
      const double each_of = 1.0 / count;
      for (int64_t j = 0; j < all; ++j) {
        const double s = sum[j], m = s * each_of;
        merge(mean[column + j], squares[column + j], (static_cast<double>(shift[j]) - origin_[column + j]) + m,
              square[j] - s * m, share, weight);
      }
    };
    blocks(c, from, to, block);
  }

  void sums(int64_t c, int64_t from, int64_t to, double* __restrict gradient, double* __restrict product) const {
    std::fill(gradient + from, gradient + padded<T>(to), 0);
    std::fill(product + from, product + padded<T>(to), 0);
    alignas(64) W sum[kTile], dot[kTile];
    const auto block = [&](int64_t row, int64_t count, int64_t column, int64_t columns) __attribute__((always_inline)) {
      const int64_t at = row * width_ + column, all = padded<T>(columns);
      each<T>(columns, [&] LANES {
        put<T>(sum + j, V{});
        put<T>(dot + j, V{});
      });
      quads(0, count, [&](auto rows, int64_t r) __attribute__((always_inline)) {
        each<T>(columns, [&] LANES {
          const V mean = get<T>(&mean_[column + j]);
          V s = get<T>(sum + j), p = get<T>(dot + j);
          for (int k = 0; k < rows.value; ++k) {
            const int64_t i = at + (r + k) * width_ + j;
            __builtin_prefetch(dy_ + i + kAhead * width_);
            __builtin_prefetch(x_ + i + kAhead * width_);
            const V g = load(dy_ + i, part);
            s += g, p += g * (load(x_ + i, part) - mean);
          }
          put<T>(sum + j, s);
          put<T>(dot + j, p);
        });
      });
      for (int64_t j = 0; j < all; ++j) gradient[column + j] += sum[j], product[column + j] += dot[j];
    };
    blocks(c, from, to, block);
  }

  // f(rows at a time, first row)
  template <class F>
  static INLINE void quads(int64_t begin, int64_t end, F f) {
    for (; begin + 4 <= end; begin += 4) f(std::integral_constant<int, 4>{}, begin);
    for (; begin < end; ++begin) f(std::integral_constant<int, 1>{}, begin);
  }

  // All chunks, the folded rest and its copies into the first `features`.
  void merge_chunks() {
    for (int64_t c = 1; c < chunks_; ++c) {
      const double before = c * chunk_, count = std::min(rows_, (c + 1) * chunk_) - before;
      const double share = count / (before + count), weight = before * share;
      for (int64_t j = 0; j < padded_; ++j)
        merge(first_[j], second_[j], first_[c * padded_ + j], second_[c * padded_ + j], share, weight);
    }
    const double rows = rows_, share = 1 / (rows + 1);
    for (int64_t j = 0; j < rest_ * features_; ++j) {
      const double x = jaxnorm::JAXNORM_ISA::first(x_ + rows_ * width_ + j);
      const int64_t at = place<T>(j);
      merge(first_[at], second_[at], x - origin_[at], 0, share, rows * share);
    }
    double before = rows_ + (rest_ > 0);
    for (int64_t k = 1; k < fold_; ++k) {
      const double count = rows_ + (k < rest_);
      if (count == 0) break;
      const double part = count / (before + count);
      for (int64_t f = 0; f < features_; ++f) {
        const int64_t to = place<T>(f), from = place<T>(k * features_ + f);
        merge(first_[to], second_[to], first_[from], second_[from], part, before * part);
      }
      before += count;
    }
  }

  void add_chunks() {
    for (int64_t c = 1; c < chunks_; ++c)
      for (int64_t j = 0; j < padded_; ++j)
        first_[j] += first_[c * padded_ + j], second_[j] += second_[c * padded_ + j];
    for (int64_t j = 0; j < rest_ * features_; ++j) {
      const int64_t from = rows_ * width_ + j, at = place<T>(j);
      const W g = jaxnorm::JAXNORM_ISA::first(dy_ + from);
      first_[at] += g, second_[at] += g * (jaxnorm::JAXNORM_ISA::first(x_ + from) - mean_[at]);
    }
    for (int64_t f = features_; f < width_; ++f) {
      const int64_t to = place<T>(f % features_), from = place<T>(f);
      first_[to] += first_[from], second_[to] += second_[from];
    }
  }

  // Statistics of every feature: its own, or its group's.
  void conclude() {
    const int64_t features = padded<T>(features_);
    const double share = 1.0 / (static_cast<double>(a_.space) * a_.inner);
    for (int64_t j = 0; j < features; ++j) {
      const double origin = origin_[j], var = second_[j] * share;
      mean_[j] = static_cast<W>(origin + first_[j]);
      residual_[j] = static_cast<W>(first_[j] - (mean_[j] - origin));
      var_[j] = static_cast<W>(var < 0 ? 0 : var);
    }
  }

  // Features of one group count the same: two passes merge them, and all have the result.
  void group(int64_t begin, int64_t end) {
    const W origin = origin_[place<T>(begin)];
    const double space = a_.space;
    const auto mean_of = [&](int64_t at) { return (static_cast<double>(origin_[at]) - origin) + first_[at]; };
    double sum = 0, squares = 0;
    for (int64_t f = begin; f < end; ++f) sum += mean_of(place<T>(f));
    const double mean = sum / (end - begin);
    for (int64_t f = begin; f < end; ++f) {
      const double d = mean_of(place<T>(f)) - mean;
      squares += second_[place<T>(f)] + space * d * d;
    }
    for (int64_t f = begin; f < end; ++f) {
      const int64_t at = place<T>(f);
      origin_[at] = origin, first_[at] = mean, second_[at] = squares;
    }
  }

  // f(given(column), place in the slab, whole or part)
  template <class Given, class G, class F>
  INLINE void backwards(const Workers& workers, G given, F f) const {
    const int64_t width = width_;
    each<T>(rest_ * features_, [&] LANES { f(given(j), rows_ * width + j, part); });
    const auto piece = [&](int64_t c, int64_t from, int64_t to) {
      const int64_t begin = c * chunk_, end = std::min(rows_, begin + chunk_);
      if (width == 4 * L)
        narrow<Given, 4>(begin, end, given, f);
      else if (width == 8 * L && sizeof(Given) == 3 * sizeof(V) && !kHalf<T>)
        narrow<Given, 8>(begin, end, given, f);
      else
        for (int64_t row = begin; row < end; ++row)
          each<T>(to - from, [&] LANES { f(given(from + j), row * width + from + j, part); });
    };
    pieces(workers, piece, true);
  }

  // Rows of so few vectors that what is given for them stays in registers.
  template <class Given, int kVectors, class G, class F>
  static INLINE void narrow(int64_t begin, int64_t end, G given, F f) {
    Given of[kVectors];
    for (int v = 0; v < kVectors; ++v) of[v] = given(v * L);
    for (int64_t at = begin * kVectors * L; at < end * kVectors * L; at += kVectors * L)
      for (int v = 0; v < kVectors; ++v) f(of[v], at + v * L, Whole{});
  }

  const ColumnsArguments& a_;
  int64_t features_, fold_, width_, padded_, rows_, rest_, chunk_, chunks_, strip_, strips_;
  const T *x_ = nullptr, *dy_ = nullptr;
  Array<double> first_, second_;  // of each chunk: moments or sums
  Array<W> origin_, mean_, residual_, var_, factor_, bias_, scale_, slope_, shift_;
};

// f(slab, outer, workers, part): many slabs side by side, or few with their rows side by side; `part` of at most 64.
template <class T, class F>
void slabs(const ColumnsArguments& a, F f) {
  if (a.outer * a.space * a.kept * a.inner == 0) return;
  const int64_t each_part = ceil_div(a.outer, 64), parts = ceil_div(a.outer, each_part);
  const auto some = [&](Slab<T>& slab, int64_t part, const Workers& workers) {
    for (int64_t o = part * each_part; o < std::min(a.outer, (part + 1) * each_part); ++o) f(slab, o, workers, part);
  };
  if (parts >= a.workers.threads() || Slab<T>::tasks(a) <= parts) {
    a.workers.Run(parts, [&](int64_t part) {
      Slab<T> slab(a);
      some(slab, part, alone());
    });
  } else {
    Slab<T> slab(a);
    for (int64_t part = 0; part < parts; ++part) some(slab, part, a.workers);
  }
}

template <class T>
void forward_columns(const ColumnsArguments& a) {
  for (int64_t i = 0; a.space * a.inner == 0 && i < a.outer * a.kept; ++i)  // as an untouched state
    pointer<Wide<T>>(a.mean)[i] = pointer<Wide<T>>(a.residual)[i] = 0, pointer<Wide<T>>(a.var)[i] = 1;
  slabs<T>(a, [&](Slab<T>& slab, int64_t o, const Workers& workers, int64_t) { slab.Forward(o, workers); });
}

template <class T>
void backward_columns(const ColumnsArguments& a) {
  const int64_t size = padded<T>(a.kept * a.inner), parts = std::clamp<int64_t>(a.outer, 1, 64);
  std::vector<double> dfactor(parts * size), dbias(parts * size);
  slabs<T>(a, [&](Slab<T>& slab, int64_t o, const Workers& workers, int64_t part) {
    slab.Backward(o, workers, &dfactor[part * size], &dbias[part * size]);
  });
  const auto add = [&](std::vector<double>& of, void* sum) {
    if (!sum) return;
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t j = 0; j < size; ++j) of[j] += of[part * size + j];
    restore<T>(of.data(), a.kept * a.inner, pointer<Wide<T>>(sum));
  };
  add(dfactor, a.dfactor);
  add(dbias, a.dbias);
}

// -- By dtype --------------------------------------------------------------------------------------------------------

template <class F>
ffi::Error by_dtype(ffi::DataType dtype, F f) {
  switch (dtype) {
    case ffi::BF16:
      f(bfloat16{});
      break;
#ifndef JAXNORM_BFLOAT16
    case ffi::F32:
      f(float{});
      break;
    case ffi::F16:
      f(float16{});
      break;
    case ffi::F64:
      f(double{});
      break;
#endif
    default:
      return ffi::Error::InvalidArgument("jaxnorm: no kernel for this dtype");
  }
  return ffi::Error::Success();
}

ffi::Error rows_forward(const RowsArguments& a) {
  return by_dtype(a.dtype, [&](auto t) {
    using T = decltype(t);
    a.repeat == 1 ? forward_rows<T, false>(a) : forward_rows<T, true>(a);
  });
}

ffi::Error rows_backward(const RowsArguments& a) {
  return by_dtype(a.dtype, [&](auto t) {
    using T = decltype(t);
    a.repeat == 1 ? backward_rows<T, false>(a) : backward_rows<T, true>(a);
  });
}

ffi::Error columns_forward(const ColumnsArguments& a) {
  return by_dtype(a.dtype, [&](auto t) { forward_columns<decltype(t)>(a); });
}

ffi::Error columns_backward(const ColumnsArguments& a) {
  return by_dtype(a.dtype, [&](auto t) { backward_columns<decltype(t)>(a); });
}

}  // namespace jaxnorm::JAXNORM_ISA

#endif
