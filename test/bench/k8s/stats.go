package main

import "slices"

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2
}

// quantile is the value that a part of the list does not exceed.
func quantile(list []float64, part float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[min(int(part*float64(len(list))), len(list)-1)]
}

// spread is how far the middle half of values reaches around their median, in
// percent.
func spread(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	n := len(list)
	return 100 * (list[n-1-n/4] - list[n/4]) / median(list)
}
