int kf_base_answer(void);
