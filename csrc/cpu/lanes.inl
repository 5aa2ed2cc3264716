// Whole and partial vectors of arrays.

// Vectors of columns [0, columns) with the number of valid lanes of each.
template <class T, class Visit>
FN void for_each_vector(index columns, Visit visit) {
  index c = 0;
  for (; c + Vec<T>::lanes <= columns; c += Vec<T>::lanes) visit(c, Vec<T>::lanes);
  if (c < columns) visit(c, columns - c);
}

template <class T>
FN typename Vec<T>::V load_lanes(const T* p, index n) {
  if (fault(Fault::whole_vector_read)) (void)static_cast<const volatile T*>(p)[Vec<T>::lanes - 1];
  return n == Vec<T>::lanes ? Vec<T>::load(p) : Vec<T>::load_part(p, n);
}

template <class T>
FN void store_lanes(T* p, typename Vec<T>::V v, index n) {
  if (n == Vec<T>::lanes) {
    Vec<T>::store(p, v);
  } else {
    Vec<T>::store_part(p, v, fault(Fault::tail_lane_lost) ? n - 1 : n);
    if (fault(Fault::whole_vector_written)) static_cast<volatile T*>(p)[n] = static_cast<volatile T*>(p)[n];
  }
}

// Elements p[0], p[unit], ...: any unit, also 0 and negative
template <class T>
FN typename Vec<T>::V load_strided(const T* p, index unit, index n) {
  if (unit == 1) return load_lanes(p, n);
  T part[Vec<T>::lanes] = {};
  for (index i = 0; i < n; ++i) part[i] = p[i * unit];
  return Vec<T>::load(part);
}

// Asks for the lines of a row's elements, into the second cache level: the first one is always full of weights, and can
// wait for few lines at a time; while it waited for these, the weights would have to wait.
template <class T>
FN void prefetch_row(const T* row, index columns, index unit) {
  constexpr index line = 64 / static_cast<index>(sizeof(T));
  if (unit != 1) {  // any other distance, also 0 and negative
    for (index c = 0; c < columns; c += line) prefetch_far(row + c * unit);
    return;
  }
  const T* const last = row + columns - 1;
  row -= reinterpret_cast<std::uintptr_t>(row) % 64 / sizeof(T);  // where lines begin
  for (; row <= last; row += line) prefetch_far(row);
}

// The same for elements [column, column + columns) of some rows, early enough to be there when they are used.
template <class T>
FN void prefetch_rows(const T* const* rows, index first, index count, index column, index columns, index unit) {
  if (!rows || columns <= 0) return;
  for (index r = first; r < first + count; ++r) prefetch_row(rows[r] + column * unit, columns, unit);
}
