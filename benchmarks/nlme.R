# Fit each data set of a CSV (set, Subject, Dose, Time, conc) by R's nlme, as its book does for Theoph.
# Rscript nlme.R data.csv REPEATS BLOCK: prints "set logLik cpu wall" per set; times are per fit, the
# best of REPEATS blocks of BLOCK fits (proc.time has a resolution of 1 ms), NA where nlme stops.
suppressPackageStartupMessages(library(nlme))
args <- commandArgs(TRUE)
data <- read.csv(args[1])
repeats <- as.integer(args[2])
block <- as.integer(args[3])
fit <- function(d)
  nlme(conc ~ SSfol(Dose, Time, lKe, lKa, lCl), data = d,
       fixed = lKe + lKa + lCl ~ 1, random = list(Subject = pdDiag(lKa + lCl ~ 1)),
       start = c(lKe = -2.4, lKa = 0.45, lCl = -3.2), method = "ML")
for (k in unique(data$set)) {
  d <- data[data$set == k, ]
  value <- cpu <- wall <- NA
  for (i in seq_len(repeats)) {
    before <- proc.time()
    last <- NULL
    for (j in seq_len(block))
      last <- tryCatch(suppressWarnings(fit(d)), error = function(e) NULL)
    spent <- proc.time() - before
    if (!is.null(last)) value <- as.numeric(logLik(last))
    cpu <- min(cpu, (spent[["user.self"]] + spent[["sys.self"]]) / block, na.rm = TRUE)
    wall <- min(wall, spent[["elapsed"]] / block, na.rm = TRUE)
  }
  cat(k, format(value, digits = 12), cpu, wall, "\n")
}
