// Normalization on the CPU, behind XLA's foreign function interface.
//
// Two kernels serve the family. `Rows`: x[rows, n], statistics of every row (layer, RMS; group and instance norm whose
// features come first). `Columns`: x[outer, space, kept, inner], statistics over space and inner (batch, ghost batch,
// group and instance norm whose features come last). Each has a forward and a backward pass.
//
// Statistics are those of jaxnorm/rules.py: deviations are taken from a mean that was already subtracted, sums of a
// few thousand numbers are merged by Chan's formula in double precision, and the mean is carried as mean + residual.
// Every sum is taken relative to a first number of its own set, so that a constant set gives exactly zero.
//
// Work is cut into chunks by shape alone and merged in their order: no result depends on the number of threads.
// Half precision is widened in registers. The part below `JAXNORM_ISA` is compiled once for each instruction set: this
// file includes itself. Absent arrays, in and out, have no elements.

#ifndef JAXNORM_ISA

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

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

// XLA's threads. The caller works too, and never waits for a helper that has not started: a pool whose threads are
// all inside such calls still gets done.
class Workers {
 public:
  // Waking a thread costs as much as it normalizes in the same time: small inputs stay on the caller's.
  Workers(ffi::ThreadPool* pool, int64_t bytes) : pool_(pool), threads_(bytes < kWorthWaking ? 1 : pool->num_threads()) {}

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
    };
    auto job = std::make_shared<Job>();
    auto work = [job, count, &f] {  // a late helper finds nothing left, and does not touch f
      for (int64_t i; (i = job->next.fetch_add(1)) < count; job->done.fetch_add(1)) f(i);
    };
    for (int64_t h = 0; h < helpers; ++h) pool_->Schedule(decltype(work)(work));
    work();
    while (job->done.load() < count) std::this_thread::yield();
  }

 private:
  static constexpr int64_t kWorthWaking = 256 << 10;
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

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(JAXNORM_BASELINE)
#define JAXNORM_MULTIVERSION
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

#ifdef JAXNORM_MULTIVERSION
#define KERNEL(name)                                               \
  (__builtin_cpu_supports("x86-64-v4")   ? avx512::name \
   : __builtin_cpu_supports("x86-64-v3") ? avx2::name   \
                                         : baseline::name)
#else
#define KERNEL(name) baseline::name
#endif

using In = ffi::AnyBuffer;
using Out = ffi::Result<ffi::AnyBuffer>;

const void* data(const In& array) { return array.element_count() ? array.untyped_data() : nullptr; }
void* data(Out& array) { return array->element_count() ? array->untyped_data() : nullptr; }

ffi::Error rows_forward(ffi::ThreadPool pool, In x, In added, In factor, In bias, In epsilon, Out y, Out sum, Out mean,
                        Out residual, Out var, bool center, int64_t kept, int64_t repeat) {
  static const auto kernel = KERNEL(rows_forward);
  RowsArguments a{Workers(&pool, 2 * x.size_bytes()), x.element_type()};
  a.rows = x.dimensions()[0], a.n = x.dimensions()[1], a.kept = kept, a.repeat = repeat, a.center = center;
  a.x = data(x), a.added = data(added), a.factor = data(factor), a.bias = data(bias), a.epsilon = data(epsilon);
  a.y = data(y), a.sum = data(sum), a.mean = data(mean), a.residual = data(residual), a.var = data(var);
  return kernel(a);
}

ffi::Error rows_backward(ffi::ThreadPool pool, In x, In factor, In epsilon, In dy, In dh, Out dx, Out dfactor, Out dbias,
                         bool center, int64_t kept, int64_t repeat) {
  static const auto kernel = KERNEL(rows_backward);
  RowsArguments a{Workers(&pool, 3 * x.size_bytes()), x.element_type()};
  a.rows = x.dimensions()[0], a.n = x.dimensions()[1], a.kept = kept, a.repeat = repeat, a.center = center;
  a.x = data(x), a.factor = data(factor), a.epsilon = data(epsilon), a.dy = data(dy), a.dh = data(dh);
  a.dx = data(dx), a.dfactor = data(dfactor), a.dbias = data(dbias);
  return kernel(a);
}

ColumnsArguments columns(ffi::ThreadPool& pool, const In& x) {
  const auto d = x.dimensions();
  return {Workers(&pool, 3 * x.size_bytes()), x.element_type(), d[0], d[1], d[2], d[3]};
}

ffi::Error columns_forward(ffi::ThreadPool pool, In x, In factor, In bias, In epsilon, Out y, Out mean, Out residual,
                           Out var) {
  static const auto kernel = KERNEL(columns_forward);
  auto a = columns(pool, x);
  a.x = data(x), a.factor = data(factor), a.bias = data(bias), a.epsilon = data(epsilon);
  a.y = data(y), a.mean = data(mean), a.residual = data(residual), a.var = data(var);
  return kernel(a);
}

ffi::Error columns_backward(ffi::ThreadPool pool, In x, In mean, In residual, In var, In factor, In epsilon, In dy,
                            Out dx, Out dfactor, Out dbias) {
  static const auto kernel = KERNEL(columns_backward);
  auto a = columns(pool, x);
  a.x = data(x), a.factor = data(factor), a.epsilon = data(epsilon), a.dy = data(dy);
  a.mean = mean.untyped_data(), a.residual = residual.untyped_data(), a.var = var.untyped_data();
  a.dx = data(dx), a.dfactor = data(dfactor), a.dbias = data(dbias);
  return kernel(a);
}

}  // namespace jaxnorm

#pragma GCC visibility push(default)

#define ARRAY .Arg<jaxnorm::In>()
#define RESULT .Ret<xla::ffi::AnyBuffer>()
#define ROWS .Attr<bool>("center").Attr<int64_t>("kept").Attr<int64_t>("repeat")
#define HANDLER(name, binding) \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxnorm_##name, jaxnorm::name, xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>() binding)

HANDLER(rows_forward, ARRAY ARRAY ARRAY ARRAY ARRAY RESULT RESULT RESULT RESULT RESULT ROWS);
HANDLER(rows_backward, ARRAY ARRAY ARRAY ARRAY ARRAY RESULT RESULT RESULT ROWS);
HANDLER(columns_forward, ARRAY ARRAY ARRAY ARRAY RESULT RESULT RESULT RESULT);
HANDLER(columns_backward, ARRAY ARRAY ARRAY ARRAY ARRAY ARRAY ARRAY RESULT RESULT RESULT);

#pragma GCC visibility pop

#else  // ---------------------------------------------------------------------------- once for each instruction set

namespace jaxnorm::JAXNORM_ISA {

// -- Vectors, computed in at least float32 ---------------------------------------------------------------------------

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
  static constexpr int64_t lanes = JAXNORM_BYTES / sizeof(W);
};
template <class W>
using Vec = typename Vector<W>::type;
template <class T>
constexpr int64_t kLanes = Vector<Wide<T>>::lanes;

typedef uint16_t Halves __attribute__((vector_size(JAXNORM_BYTES / 2)));
using Bits = Vec<uint32_t>;
using Floats = Vec<float>;

INLINE Floats widen(Bits h, bfloat16) { return (Floats)(h << 16); }

INLINE Floats widen(Bits h, float16) {
  const Bits magnitude = h & 0x7fff;
  const Bits infinite = (Bits)(magnitude >= 0x7c00) & 0x38000000;
  const Bits normal = (magnitude << 13) + 0x38000000 + infinite;
  const Bits subnormal = (Bits)(__builtin_convertvector(magnitude, Floats) * 0x1p-24f);
  return (Floats)((magnitude < 0x400 ? subnormal : normal) | (h & 0x8000) << 16);
}

// To the nearest, ties to even; NaN stays NaN.
INLINE Bits narrow(Floats v, bfloat16) {
  const Bits u = (Bits)v;
  return (v != v ? u | 0x400000 : u + 0x7fff + (u >> 16 & 1)) >> 16;
}

INLINE Bits narrow(Floats v, float16) {
  const Bits u = (Bits)v, magnitude = u & 0x7fffffff;
  const Bits normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;
  const Bits subnormal = (Bits)((Floats)magnitude + 0.5f) - 0x3f000000;
  Bits h = magnitude < 0x38800000 ? subnormal : normal;
  h = magnitude >= 0x47800000 ? Bits{} + 0x7c00 : h;
  h = v != v ? Bits{} + 0x7e00 : h;
  return h | (u & 0x80000000) >> 16;
}

template <class T>
INLINE Vec<Wide<T>> load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    Halves h;
    std::memcpy(&h, p, sizeof h);
    return widen(__builtin_convertvector(h, Bits), T{});
  } else {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
}

template <class T>
INLINE void store(T* p, Vec<Wide<T>> v) {
  if constexpr (sizeof(T) == 2) {
    const Halves h = __builtin_convertvector(narrow(v, T{}), Halves);
    std::memcpy(p, &h, sizeof h);
  } else {
    std::memcpy(p, &v, sizeof v);
  }
}

// A whole vector, or the first `count` lanes of one; the other lanes are zero.
struct Whole {};
struct Part {
  int64_t count;
};

template <class T>
INLINE Vec<Wide<T>> load(const T* p, Whole) {
  return load(p);
}

template <class T>
INLINE Vec<Wide<T>> load(const T* p, Part part) {
  T lanes[kLanes<T>] = {};
  std::memcpy(lanes, p, part.count * sizeof(T));
  return load(lanes);
}

template <class T>
INLINE void store(T* p, Vec<Wide<T>> v, Whole) {
  store(p, v);
}

template <class T>
INLINE void store(T* p, Vec<Wide<T>> v, Part part) {
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
  decltype(v[0] + 0) lanes[2 * sizeof(V) / sizeof(v[0])] = {};
  V kept;
  std::memcpy(&lanes, &v, sizeof v);
  std::memcpy(&lanes[part.count], &lanes[sizeof(V) / sizeof(v[0])], sizeof v);
  std::memcpy(&kept, &lanes, sizeof v);
  return kept;
}

template <class W, int kBytes = JAXNORM_BYTES, class V>
INLINE W total(const V& v) {
  if constexpr (kBytes == sizeof(W)) {
    return v[0];
  } else {
    typedef W Half __attribute__((vector_size(kBytes / 2)));
    Half low, high;
    std::memcpy(&low, &v, kBytes / 2);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + kBytes / 2, kBytes / 2);
    return total<W, kBytes / 2>(low + high);
  }
}

template <class W>
INLINE W total(const Vec<W> (&v)[4]) {
  return total<W>((v[0] + v[1]) + (v[2] + v[3]));
}

// f(j, whole or part, u) for every vector of n columns; where `kSums` is 4, u in 0..3 takes turns among as many sums.
template <class W, int kSums = 1, class F>
INLINE void each(int64_t n, F f) {
  constexpr int64_t L = Vector<W>::lanes;
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

template <class W>
Array<W> parameters(const void* given, int64_t count, W otherwise) {
  Array<W> all(count, otherwise);
  if (given) std::memcpy(all.data(), given, count * sizeof(W));
  return all;
}

template <class W>
struct Statistics {
  W mean, residual, var;
  W inverse(W epsilon) const { return 1 / std::sqrt(var + epsilon); }
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
  Statistics<W> From(W origin) const {
    if (count == 0) return {0, 0, 1};  // as an untouched state
    const W rounded = static_cast<W>(origin + mean);
    const double var = squares / count;
    return {rounded, static_cast<W>(mean - (static_cast<double>(rounded) - origin)), static_cast<W>(var < 0 ? 0 : var)};
  }
};

// -- Rows ------------------------------------------------------------------------------------------------------------

constexpr int64_t kSegment = 4096;  // numbers summed in x's precision; they stay in the first cache

template <class T, class W = Wide<T>>
__attribute__((noinline)) Statistics<W> measure(const T* x, int64_t n, bool center) {
  constexpr int64_t L = kLanes<T>;
  Moments moments;
  const W origin = n >= L ? load(x)[0] : n ? load(x, Part{n})[0] : 0;
  for (int64_t begin = 0; begin < n; begin += kSegment) {
    const T* p = x + begin;
    const int64_t count = std::min(kSegment, n - begin);
    const W share = W{1} / count;
    Vec<W> sum[4] = {}, squares[4] = {};
    if (center) {
      const int64_t fours = count / (4 * L) * (4 * L);  // four equal numbers have an exact sum: less to subtract
      for (int64_t j = 0; j < fours; j += 4 * L)
        sum[0] += ((load(p + j) + load(p + j + L)) + (load(p + j + 2 * L) + load(p + j + 3 * L))) - 4 * origin;
      each<W>(count - fours, [&] LANES { sum[u] += keep(load(p + fours + j, part) - origin, part); });
      const W mean = origin + total<W>(sum) * share;
      std::fill(sum, sum + 4, Vec<W>{});
      each<W, 4>(count, [&] LANES {
        const Vec<W> d = keep(load(p + j, part) - mean, part);
        sum[u] += d, squares[u] += d * d;
      });
      const double rest = total<W>(sum), residual = rest * share;
      moments.Merge(count, (static_cast<double>(mean) - origin) + residual, total<W>(squares) - rest * residual);
    } else {
      each<W, 4>(count, [&] LANES {
        const Vec<W> v = load(p + j, part);
        squares[u] += v * v;
      });
      moments.Merge(count, 0, total<W>(squares));
    }
  }
  return moments.From(center ? origin : W{0});
}

// Parameters of a row: one for each column, or (`kShared`) one for every `repeat` neighbours.
template <bool kShared, class W, class P>
INLINE Vec<W> parameter(const W* p, int64_t j, P part) {
  if constexpr (kShared)
    return Vec<W>{} + *p;
  else
    return load(p + j, part);
}

// The rows from r on, `kRows` of them: several share one reading of the parameters.
template <class T, bool kShared, int kRows, class W = Wide<T>>
void forward_some(const RowsArguments& a, int64_t r, const W* factor, const W* bias) {
  const T* x = pointer<T>(a.x) + r * a.n;
  const int64_t n = a.n;
  if (a.added) {
    const T* added = pointer<T>(a.added) + r * n;
    T* sum = pointer<T>(a.sum) + r * n;
    each<W>(kRows * n, [&] LANES { store(sum + j, load(x + j, part) + load(added + j, part), part); });
    x = sum;
  }
  W mean[kRows], inverse[kRows], shift[kRows];
  for (int k = 0; k < kRows; ++k) {
    const Statistics<W> s = measure(x + k * n, n, a.center);
    mean[k] = s.mean, inverse[k] = s.inverse(*pointer<W>(a.epsilon)), shift[k] = -s.residual * inverse[k];
    if (!a.mean) continue;
    pointer<W>(a.mean)[r + k] = s.mean;
    pointer<W>(a.residual)[r + k] = s.residual;
    pointer<W>(a.var)[r + k] = s.var;
  }
  if (!a.y) return;
  T* y = pointer<T>(a.y) + r * n;
  const int64_t run = kShared ? a.repeat : n;
  for (int64_t begin = 0; begin < n; begin += run, x += run, y += run, ++factor, ++bias)
    each<W>(run, [&] LANES {
      const Vec<W> f = parameter<kShared>(factor, j, part), b = parameter<kShared>(bias, j, part);
      Vec<W> v[kRows];  // all read before any is written: rows a page apart look alike to a processor that runs ahead
      for (int k = 0; k < kRows; ++k) v[k] = ((load(x + k * n + j, part) - mean[k]) * inverse[k] + shift[k]) * f + b;
      for (int k = 0; k < kRows; ++k) store(y + k * n + j, v[k], part);
    });
}

template <class T, bool kShared, int kRows, class W = Wide<T>>
void backward_some(const RowsArguments& a, int64_t r, const W* factor, W* dfactor, W* dbias) {
  const T *x = pointer<T>(a.x) + r * a.n, *dy = pointer<T>(a.dy) + r * a.n;
  const int64_t n = a.n, run = kShared ? a.repeat : n;
  W mean[kRows], inverse[kRows], shift[kRows];
  Vec<W> sum[kRows] = {}, product[kRows] = {};  // of the gradient of xhat; of it and xhat
  for (int k = 0; k < kRows; ++k) {
    const Statistics<W> s = measure(x + k * n, n, a.center);
    mean[k] = s.mean, inverse[k] = s.inverse(*pointer<W>(a.epsilon)), shift[k] = -s.residual * inverse[k];
  }
  for (int64_t begin = 0, p = 0; begin < n; begin += run, ++p) {
    Vec<W> gradients = {}, products = {};
    each<W>(run, [&] LANES {
      const Vec<W> f = parameter<kShared>(factor + p, j, part);
      Vec<W> all = {}, all_products = {};
      for (int k = 0; k < kRows; ++k) {
        const Vec<W> xhat = keep((load(x + k * n + begin + j, part) - mean[k]) * inverse[k] + shift[k], part);
        const Vec<W> g = load(dy + k * n + begin + j, part), gx = g * xhat;
        sum[k] += g * f, product[k] += gx * f;
        all += g, all_products += gx;
      }
      if constexpr (kShared) {
        gradients += all, products += all_products;
      } else {
        if (dfactor) store(dfactor + j, load(dfactor + j, part) + all_products, part);
        if (dbias) store(dbias + j, load(dbias + j, part) + all, part);
      }
    });
    if constexpr (kShared) {
      if (dfactor) dfactor[p] += total<W>(products);
      if (dbias) dbias[p] += total<W>(gradients);
    }
  }
  if (!a.dx) return;
  W offset[kRows], slope[kRows];
  for (int k = 0; k < kRows; ++k) {
    offset[k] = a.center ? total<W>(sum[k]) / n : 0, slope[k] = total<W>(product[k]) / n;
  }
  T* dx = pointer<T>(a.dx) + r * n;
  const T* dh = a.dh ? pointer<T>(a.dh) + r * n : nullptr;
  for (int64_t begin = 0; begin < n; begin += run, ++factor)
    each<W>(run, [&] LANES {
      const Vec<W> f = parameter<kShared>(factor, j, part);
      Vec<W> v[kRows];
      for (int k = 0; k < kRows; ++k) {
        const int64_t at = k * n + begin + j;
        const Vec<W> xhat = (load(x + at, part) - mean[k]) * inverse[k] + shift[k];
        v[k] = ((load(dy + at, part) * f - offset[k]) - xhat * slope[k]) * inverse[k];
        if (dh) v[k] += load(dh + at, part);
      }
      for (int k = 0; k < kRows; ++k) store(dx + k * n + begin + j, v[k], part);
    });
}

constexpr int64_t kLong = 1536;  // where a row and its parameters no longer share the first cache

// f(how many rows, the first): long ones by fours, if they share parameters.
template <class F>
INLINE void rows(const RowsArguments& a, int64_t begin, int64_t end, F f) {
  if (a.kept == 1 && a.n >= kLong)
    for (; begin + 4 <= end; begin += 4) f(std::integral_constant<int, 4>{}, begin);
  for (; begin < end; ++begin) f(std::integral_constant<int, 1>{}, begin);
}

template <class T, bool kShared>
void forward_rows(const RowsArguments& a) {
  using W = Wide<T>;
  const int64_t per_row = a.n / a.repeat, count = a.kept * per_row;
  const auto factor = parameters<W>(a.factor, count, 1), bias = parameters<W>(a.bias, count, 0);
  const int64_t chunk = ceil_div(kGrain, 4 * std::max<int64_t>(a.n, 1)) * 4;
  a.workers.Run(ceil_div(a.rows, chunk), [&](int64_t c) {
    rows(a, c * chunk, std::min(a.rows, (c + 1) * chunk), [&](auto some, int64_t r) {
      const int64_t p = r % a.kept * per_row;
      forward_some<T, kShared, some.value>(a, r, factor.data() + p, bias.data() + p);
    });
  });
}

template <class T, bool kShared>
void backward_rows(const RowsArguments& a) {
  using W = Wide<T>;
  const int64_t per_row = a.n / a.repeat, count = a.kept * per_row;
  const auto factor = parameters<W>(a.factor, count, 1);
  const int64_t chunk = ceil_div(std::max({int64_t{8}, ceil_div(a.rows, 64), kGrain / std::max<int64_t>(a.n, 1)}), 4) * 4;
  const int64_t chunks = ceil_div(a.rows, chunk);
  Array<W> dfactor(a.dfactor ? chunks * count : 0), dbias(a.dbias ? chunks * count : 0);
  a.workers.Run(chunks, [&](int64_t c) {
    rows(a, c * chunk, std::min(a.rows, (c + 1) * chunk), [&](auto some, int64_t r) {
      const int64_t p = r % a.kept * per_row;
      backward_some<T, kShared, some.value>(a, r, factor.data() + p, a.dfactor ? &dfactor[c * count + p] : nullptr,
                                            a.dbias ? &dbias[c * count + p] : nullptr);
    });
  });
  const auto add = [&](const Array<W>& parts, W* sum) {
    if (!sum) return;
    std::fill(sum, sum + count, W{0});
    for (int64_t c = 0; c < chunks; ++c)
      for (int64_t p = 0; p < count; ++p) sum[p] += parts[c * count + p];
  };
  add(dfactor, pointer<W>(a.dfactor));
  add(dbias, pointer<W>(a.dbias));
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

// One slab x[space, kept, inner], seen as wide rows: narrow ones are folded, several to a row of whole vectors.
template <class T>
class Slab {
  using W = Wide<T>;

 public:
  explicit Slab(const ColumnsArguments& a) : a_(a), features_(a.kept * a.inner) {
    constexpr int64_t L = kLanes<T>;
    fold_ = 1;
    if (features_ < 16 * L) while (fold_ * features_ < 4 * L || (fold_ * features_ % L && fold_ < L)) ++fold_;
    width_ = fold_ * features_;
    padded_ = ceil_div(width_, L) * L;
    rows_ = a.space / fold_;
    rest_ = a.space % fold_;
    chunk_ = std::max({int64_t{64}, ceil_div(rows_, 64), 2 * kGrain / width_});
    chunks_ = std::max<int64_t>(1, ceil_div(rows_, chunk_));
    first_.resize(chunks_ * padded_);
    second_.resize(chunks_ * padded_);
    for (auto* p : {&origin_, &mean_, &scale_, &slope_, &shift_}) p->resize(padded_);
  }

  static int64_t chunks(const ColumnsArguments& a) { return a.space * a.kept * a.inner / (2 * kGrain); }

  void Forward(int64_t o, const Workers& workers) {
    if (a_.space == 0) {
      for (int64_t g = 0; g < a_.kept; ++g) write(o * a_.kept + g, {0, 0, 1});
      return;
    }
    x_ = pointer<T>(a_.x) + o * a_.space * features_;
    for (int64_t f = 0; f < features_; ++f) origin_[f] = load(x_ + f, Part{1})[0];
    spread(origin_);
    workers.Run(chunks_, [&](int64_t c) { moments(c, &first_[c * padded_], &second_[c * padded_]); });
    merge_chunks();
    const auto factor = pointer<W>(a_.factor), bias = pointer<W>(a_.bias);
    for (int64_t g = 0; g < a_.kept; ++g) {
      const Statistics<W> s = group(g);
      write(o * a_.kept + g, s);
      const W inverse = s.inverse(*pointer<W>(a_.epsilon));
      for (int64_t f = g * a_.inner; f < (g + 1) * a_.inner; ++f) {
        mean_[f] = s.mean, scale_[f] = factor ? inverse * factor[f] : inverse;
        shift_[f] = (bias ? bias[f] : 0) - s.residual * scale_[f];
      }
    }
    if (!a_.y) return;
    for (auto* p : {&mean_, &scale_, &shift_}) spread(*p);
    T* y = pointer<T>(a_.y) + o * a_.space * features_;
    const W *mean = mean_.data(), *scale = scale_.data(), *shift = shift_.data();
    backwards(workers, [=, x = x_](int64_t at, int64_t j, auto part) __attribute__((always_inline)) {
      store(y + at, (load(x + at, part) - load(mean + j)) * load(scale + j) + load(shift + j), part);
    });
  }

  // Adds to dfactor and dbias, of `features` each.
  void Backward(int64_t o, const Workers& workers, double* dfactor, double* dbias) {
    if (a_.space == 0) return;
    x_ = pointer<T>(a_.x) + o * a_.space * features_;
    dy_ = pointer<T>(a_.dy) + o * a_.space * features_;
    for (int64_t f = 0; f < features_; ++f) mean_[f] = pointer<W>(a_.mean)[o * a_.kept + f / a_.inner];
    spread(mean_);
    workers.Run(chunks_, [&](int64_t c) { sums(c, &first_[c * padded_], &second_[c * padded_]); });
    add_chunks();
    const auto factor = pointer<W>(a_.factor);
    const double count = a_.space * a_.inner;
    for (int64_t g = 0; g < a_.kept; ++g) {
      const int64_t at = o * a_.kept + g;
      const Statistics<W> s{pointer<W>(a_.mean)[at], pointer<W>(a_.residual)[at], pointer<W>(a_.var)[at]};
      const W inverse = s.inverse(*pointer<W>(a_.epsilon));
      double sum = 0, product = 0;
      for (int64_t f = g * a_.inner; f < (g + 1) * a_.inner; ++f) {
        const double wide = factor ? factor[f] : 1, xhat = (second_[f] - first_[f] * s.residual) * inverse;
        dbias[f] += first_[f], dfactor[f] += xhat;
        sum += wide * first_[f], product += wide * xhat;
        scale_[f] = inverse * (factor ? factor[f] : 1);
      }
      for (int64_t f = g * a_.inner; f < (g + 1) * a_.inner; ++f) {
        slope_[f] = -static_cast<W>(product / count) * inverse * inverse;
        shift_[f] = -static_cast<W>(sum / count) * inverse - slope_[f] * s.residual;
      }
    }
    if (!a_.dx) return;
    for (auto* p : {&scale_, &slope_, &shift_}) spread(*p);
    T* dx = pointer<T>(a_.dx) + o * a_.space * features_;
    const W *mean = mean_.data(), *scale = scale_.data(), *slope = slope_.data(), *shift = shift_.data();
    backwards(workers, [=, x = x_, dy = dy_](int64_t at, int64_t j, auto part) __attribute__((always_inline)) {
      const Vec<W> of_x = (load(x + at, part) - load(mean + j)) * load(slope + j) + load(shift + j);
      store(dx + at, load(dy + at, part) * load(scale + j) + of_x, part);
    });
  }

 private:
  // To the copies of a folded row.
  void spread(Array<W>& p) const {
    for (int64_t f = features_; f < width_; ++f) p[f] = p[f - features_];
  }

  void write(int64_t at, Statistics<W> s) const {
    pointer<W>(a_.mean)[at] = s.mean;
    pointer<W>(a_.residual)[at] = s.residual;
    pointer<W>(a_.var)[at] = s.var;
  }

  // f(first row, how many, first column, how many): blocks of one chunk, tile by tile.
  template <class F>
  INLINE void blocks(int64_t c, F f) const {
    const int64_t end = std::min(rows_, (c + 1) * chunk_);
    for (int64_t column = 0; column < width_; column += kTile)
      for (int64_t row = c * chunk_; row < end; row += kBlock)
        f(row, std::min(kBlock, end - row), column, std::min(kTile, width_ - column));
  }

  // Near the mean, so that squares around it lose no digits to its distance; of equal numbers that very number.
  template <class P>
  INLINE Vec<W> guess(const T* x, int64_t count, P part) const {
    const Vec<W> first = load(x, part);
    const int64_t some = std::min<int64_t>(count, 8);
    Vec<W> sum = {};
    for (int64_t k = 1; k < some; ++k) sum += load(x + k * width_, part) - first;
    return first + sum * (W{1} / some);
  }

  void moments(int64_t c, double* __restrict mean, double* __restrict squares) const {
    std::fill(mean, mean + padded_, 0);
    std::fill(squares, squares + padded_, 0);
    alignas(64) W shift[kTile], sum[kTile], square[kTile];
    blocks(c, [&](int64_t row, int64_t count, int64_t column, int64_t columns) __attribute__((always_inline)) {
      const T* x = x_ + row * width_ + column;
      const bool begins = row == c * chunk_;
      for (int64_t j = 0; j < columns && !begins; ++j) shift[j] = static_cast<W>(origin_[column + j] + mean[column + j]);
      each<W>(columns, [&] LANES {
        if (begins) store(shift + j, guess(x + j, count, part));
        store(sum + j, Vec<W>{});
        store(square + j, Vec<W>{});
      });
      quads(0, count, [&](auto rows, int64_t r) __attribute__((always_inline)) {
        each<W>(columns, [&] LANES {
          const Vec<W> origin = load(shift + j);
          Vec<W> s = load(sum + j), q = load(square + j);
          for (int k = 0; k < rows.value; ++k) {
            const T* p = x + (r + k) * width_ + j;
            __builtin_prefetch(p + kAhead * width_);
            const Vec<W> d = load(p, part) - origin;
            s += d, q += d * d;
          }
          store(sum + j, s);
          store(square + j, q);
        });
      });
      const double before = row - c * chunk_, share = count / (before + count), weight = before * share;
      const double each_of = 1.0 / count;
      for (int64_t j = 0; j < columns; ++j) {
        const double s = sum[j], m = s * each_of;
        merge(mean[column + j], squares[column + j], (static_cast<double>(shift[j]) - origin_[column + j]) + m,
              square[j] - s * m, share, weight);
      }
    });
  }

  void sums(int64_t c, double* __restrict gradient, double* __restrict product) const {
    std::fill(gradient, gradient + padded_, 0);
    std::fill(product, product + padded_, 0);
    alignas(64) W sum[kTile], dot[kTile];
    blocks(c, [&](int64_t row, int64_t count, int64_t column, int64_t columns) __attribute__((always_inline)) {
      const int64_t at = row * width_ + column;
      each<W>(columns, [&] LANES {
        store(sum + j, Vec<W>{});
        store(dot + j, Vec<W>{});
      });
      quads(0, count, [&](auto rows, int64_t r) __attribute__((always_inline)) {
        each<W>(columns, [&] LANES {
          const Vec<W> mean = load(&mean_[column + j]);
          Vec<W> s = load(sum + j), p = load(dot + j);
          for (int k = 0; k < rows.value; ++k) {
            const int64_t i = at + (r + k) * width_ + j;
            __builtin_prefetch(dy_ + i + kAhead * width_);
            __builtin_prefetch(x_ + i + kAhead * width_);
            const Vec<W> g = load(dy_ + i, part);
            s += g, p += g * (load(x_ + i, part) - mean);
          }
          store(sum + j, s);
          store(dot + j, p);
        });
      });
      for (int64_t j = 0; j < columns; ++j) gradient[column + j] += sum[j], product[column + j] += dot[j];
    });
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
      for (int64_t j = 0; j < width_; ++j)
        merge(first_[j], second_[j], first_[c * padded_ + j], second_[c * padded_ + j], share, weight);
    }
    const double rows = rows_, share = 1 / (rows + 1);
    for (int64_t j = 0; j < rest_ * features_; ++j) {
      const double x = load(x_ + rows_ * width_ + j, Part{1})[0];
      merge(first_[j], second_[j], x - origin_[j], 0, share, rows * share);
    }
    double before = rows_ + (rest_ > 0);
    for (int64_t k = 1; k < fold_; ++k) {
      const double count = rows_ + (k < rest_);
      if (count == 0) break;
      const double part = count / (before + count);
      for (int64_t f = 0; f < features_; ++f)
        merge(first_[f], second_[f], first_[k * features_ + f], second_[k * features_ + f], part, before * part);
      before += count;
    }
  }

  void add_chunks() {
    for (int64_t c = 1; c < chunks_; ++c)
      for (int64_t j = 0; j < width_; ++j)
        first_[j] += first_[c * padded_ + j], second_[j] += second_[c * padded_ + j];
    for (int64_t j = 0; j < rest_ * features_; ++j) {
      const int64_t at = rows_ * width_ + j;
      const W g = load(dy_ + at, Part{1})[0];
      first_[j] += g, second_[j] += g * (load(x_ + at, Part{1})[0] - mean_[j]);
    }
    for (int64_t j = features_; j < width_; ++j) first_[j % features_] += first_[j], second_[j % features_] += second_[j];
  }

  // Features of one group count the same: two passes merge them.
  Statistics<W> group(int64_t g) const {
    const int64_t begin = g * a_.inner;
    const double origin = origin_[begin], space = a_.space;
    double sum = 0, squares = 0;
    for (int64_t f = begin; f < begin + a_.inner; ++f) sum += (origin_[f] - origin) + first_[f];
    const double mean = sum / a_.inner;
    for (int64_t f = begin; f < begin + a_.inner; ++f) {
      const double d = ((origin_[f] - origin) + first_[f]) - mean;
      squares += second_[f] + space * d * d;
    }
    return Moments{space * a_.inner, mean, squares}.From(origin_[begin]);
  }

  // f(place in the slab, column, whole or part): last rows first, since they are still in a cache.
  template <class F>
  INLINE void backwards(const Workers& workers, F f) const {
    workers.Run(chunks_, [&](int64_t i) {
      const int64_t c = chunks_ - 1 - i, end = std::min(rows_, (c + 1) * chunk_);
      if (i == 0) each<W>(rest_ * features_, [&] LANES { f(rows_ * width_ + j, j, part); });
      const int64_t width = width_;
      for (int64_t row = c * chunk_; row < end; ++row) each<W>(width, [&] LANES { f(row * width + j, j, part); });
    });
  }

  const ColumnsArguments& a_;
  int64_t features_, fold_, width_, padded_, rows_, rest_, chunk_, chunks_;
  const T *x_ = nullptr, *dy_ = nullptr;
  Array<double> first_, second_;  // of each chunk: moments or sums
  Array<W> origin_, mean_, scale_, slope_, shift_;
};

// f(slab, outer, workers, part): many slabs side by side, or few with their rows side by side; `part` of at most 64.
template <class T, class F>
void slabs(const ColumnsArguments& a, F f) {
  if (a.outer == 0 || a.kept * a.inner == 0) return;
  const int64_t each_part = ceil_div(a.outer, 64), parts = ceil_div(a.outer, each_part);
  const auto some = [&](Slab<T>& slab, int64_t part, const Workers& workers) {
    for (int64_t o = part * each_part; o < std::min(a.outer, (part + 1) * each_part); ++o) f(slab, o, workers, part);
  };
  if (parts >= a.workers.threads() || Slab<T>::chunks(a) <= parts) {
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
  slabs<T>(a, [&](Slab<T>& slab, int64_t o, const Workers& workers, int64_t) { slab.Forward(o, workers); });
}

template <class T>
void backward_columns(const ColumnsArguments& a) {
  const int64_t features = a.kept * a.inner, parts = std::min<int64_t>(a.outer, 64);
  std::vector<double> dfactor(parts * features), dbias(parts * features);
  slabs<T>(a, [&](Slab<T>& slab, int64_t o, const Workers& workers, int64_t part) {
    slab.Backward(o, workers, &dfactor[part * features], &dbias[part * features]);
  });
  const auto add = [&](const std::vector<double>& of, Wide<T>* sum) {
    for (int64_t f = 0; sum && f < features; ++f) {
      double all = 0;
      for (int64_t part = 0; part < parts; ++part) all += of[part * features + f];
      sum[f] = static_cast<Wide<T>>(all);
    }
  };
  add(dfactor, pointer<Wide<T>>(a.dfactor));
  add(dbias, pointer<Wide<T>>(a.dbias));
}

// -- By dtype --------------------------------------------------------------------------------------------------------

template <class F>
ffi::Error by_dtype(ffi::DataType dtype, F f) {
  switch (dtype) {
    case ffi::F32:
      f(float{});
      break;
    case ffi::BF16:
      f(bfloat16{});
      break;
    case ffi::F16:
      f(float16{});
      break;
    case ffi::F64:
      f(double{});
      break;
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
