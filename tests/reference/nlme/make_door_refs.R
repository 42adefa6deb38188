# Prints what R's methods say about three fits of nlme(): door_*.json beside this file.
# Run from the repository root:  Rscript tests/reference/nlme/make_door_refs.R
# R 4.2, nlme 3.1-162; start values of the stored nlme_*.json files.
suppressPackageStartupMessages({ library(nlme); library(jsonlite) })
options(contrasts = c("contr.treatment", "contr.poly"))
here <- "tests/reference"
# The tightest control under which nlme() does not stop with "step halving factor reduced".
control <- function(tolerance) nlmeControl(maxIter = 1000, pnlsMaxIter = 50, msMaxIter = 500,
  minScale = 1e-10, tolerance = tolerance, niterEM = 50, pnlsTol = tolerance, msTol = 1e-12)
tightest <- function(call) {
  call <- substitute(call)
  for (tolerance in 10^-(9:6)) {
    call$control <- control(tolerance)
    fit <- try(eval(call, globalenv()), silent = TRUE)
    if (!inherits(fit, "try-error")) { attr(fit, "tolerance") <- tolerance; return(fit) }
  }
  stop("no control works")
}
read <- function(name) read.csv(file.path(here, "data", paste0(name, ".csv")))

table_of <- function(m) {
  if (is.data.frame(m)) class(m) <- "data.frame" else m <- as.data.frame(unclass(m))
  m$label <- rownames(m)
  rownames(m) <- NULL
  m
}
levels_of <- function(fit) {
  re <- ranef(fit)
  if (is.data.frame(re)) re <- setNames(list(re), names(fit$groups))
  lapply(re, table_of)
}
describe <- function(fit, newdata, id) {
  limits <- intervals(fit)
  q <- length(fit$groups)
  known <- predict(fit, newdata, level = 0:q)
  vc <- VarCorr(fit)
  out <- list(
    id = id, software = paste("R", getRversion(), "nlme", packageVersion("nlme")),
    tolerance = attr(fit, "tolerance"), logLik = c(logLik(fit)), df = attr(logLik(fit), "df"),
    intervals_fixed = table_of(limits$fixed),
    intervals_random = lapply(limits$reStruct, table_of),
    intervals_sigma = as.numeric(limits$sigma),
    intervals_fixed_90 = table_of(intervals(fit, level = 0.9, which = "fixed")$fixed),
    tTable = table_of(summary(fit)$tTable),
    corFixed = summary(fit)$corFixed,
    anova = table_of(anova(fit)), anova_marginal = table_of(anova(fit, type = "marginal")),
    VarCorr = apply(vc, 2, as.character), VarCorr_rows = rownames(vc),
    ranef = levels_of(fit), coef = table_of(coef(fit)),
    newdata = newdata, predict = known,
    pearson = as.numeric(resid(fit, type = "pearson")),
    response = as.numeric(resid(fit)),
    fitted_population = as.numeric(fitted(fit, level = 0))
  )
  write_json(out, file.path(here, "nlme", paste0("door_", id, ".json")),
             digits = 15, auto_unbox = TRUE, na = "null", dataframe = "columns")
  cat(id, c(logLik(fit)), attr(fit, "tolerance"), "\n")
}

th <- read("theoph"); th$Subject <- factor(th$Subject)
fit <- tightest(nlme(conc ~ SSfol(Dose, Time, lKe, lKa, lCl), th, fixed = lKe + lKa + lCl ~ 1,
            random = pdDiag(lKa + lCl ~ 1), groups = ~Subject,
            start = c(lKe = -2.4, lKa = .45, lCl = -3.2)))
new <- data.frame(Subject = factor(c("5", "1", "12", "77"), levels = c(levels(th$Subject), "77")),
                  Dose = c(4, 5, 4.5, 4), Time = c(1, 30, 0.5, 2))
describe(fit, new, "theoph_diag2")

co <- read("co2"); co$Plant <- factor(co$Plant)
co$Type <- factor(co$Type, c("Quebec", "Mississippi"))
co$Treatment <- factor(co$Treatment, c("nonchilled", "chilled"))
fit <- tightest(nlme(uptake ~ Asym * (1 - exp(-exp(lrc) * (conc - c0))), co,
            fixed = list(Asym ~ Type * Treatment, lrc + c0 ~ 1), random = Asym + lrc ~ 1,
            groups = ~Plant, start = c(36, -8, -4, -6, -4.56, 49.3)))
new <- data.frame(Plant = factor(c("Mc2", "Qn1", "Qc3"), levels(co$Plant)),
                  Type = factor(c("Mississippi", "Quebec", "Quebec"), levels(co$Type)),
                  Treatment = factor(c("chilled", "nonchilled", "chilled"), levels(co$Treatment)),
                  conc = c(200, 600, 1200))
describe(fit, new, "co2_cov_full2")

pb <- read("pbg"); pb$Rabbit <- factor(pb$Rabbit); pb$Run <- factor(pb$Run)
pb$Treatment <- factor(pb$Treatment, c("MDL 72222", "Placebo"))
fit <- tightest(nlme(deltaBP ~ A + (B - A) / (1 + exp((xmid - log(dose)) / scal)), pb,
            fixed = list(A + B ~ 1, xmid ~ Treatment, scal ~ 1),
            random = list(Rabbit = B ~ 1, Run = B ~ 1),
            start = c(1.6, 29, 4.6, -1.2, 0.3)))
new <- pb[c(3, 20, 47), c("Rabbit", "Run", "Treatment", "dose")]
new$dose <- c(60, 10, 120)
describe(fit, new, "pbg_nested")
